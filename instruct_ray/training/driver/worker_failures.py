"""controller callback: logs the failure of a worker as an event, before Ray Train restarts all workers."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from instruct_ray.run.events import event_record
from instruct_ray.run.line_writer import LineWriter
from instruct_ray.run.lock import LockTicket
from instruct_ray.training.driver.failures import describe_cause

# Seconds that the other workers get to leave their process group. They can't leave it while a worker hangs, so Ray's
# default of 30 would only be lost. The controller reads the variable, and Ray does not pass it there from the driver.
PG_SHUTDOWN_TIMEOUT = ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")


class WorkerFailureCallback(UserCallback):
    """Logs which worker failed first and why, and shortens the shutdown of the other workers."""

    def __init__(self, events_file: Path, lock: LockTicket | None) -> None:
        self._events_file, self._lock = events_file, lock
        # Made in the controller: a thread can't be sent there.
        self._events: LineWriter | None = None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Log the failure."""
        os.environ.setdefault(*PG_SHUTDOWN_TIMEOUT)
        if self._events is None:
            self._events = LineWriter(self._events_file, Path(tempfile.gettempdir()), self._lock)
        self._events.append(event_record(describe_cause(worker_exceptions)))
