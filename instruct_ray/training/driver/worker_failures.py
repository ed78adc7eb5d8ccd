"""controller callback: logs the failure of a worker as an event, before Ray Train restarts all workers."""

import os
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from instruct_ray.run.events import log_event

MAX_CHARACTERS = 300
# Seconds that the other workers get to leave their process group. They can't leave it while a worker hangs, so Ray's
# default of 30 would only be lost. The controller reads the variable, and Ray does not pass it there from the driver.
PG_SHUTDOWN_TIMEOUT = ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")


class WorkerFailureCallback(UserCallback):
    """Logs which worker failed first and why, and shortens the shutdown of the other workers."""

    def __init__(self, events_file: Path) -> None:
        self._events_file = events_file

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Log the failure. A worker that died is taken as the cause: the others failed because it left a collective."""
        os.environ.setdefault(*PG_SHUTDOWN_TIMEOUT)
        rank, error = min(worker_exceptions.items(), key=lambda item: (not _has_died(item[1]), item[0]))
        text = " ".join(str(vars(error).get("health_check_failure", error)).split())[:MAX_CHARACTERS]
        log_event(self._events_file, f"worker {rank} failed: {text}")


def _has_died(error: Exception) -> bool:
    return "health_check_failure" in vars(error)
