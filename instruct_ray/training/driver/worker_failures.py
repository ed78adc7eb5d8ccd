"""A worker that failed -> a notice. Ray Train calls this in its controller, which then starts all workers again."""

import os
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from instruct_ray.run.events import log_event

MAX_CHARACTERS = 300
# Seconds that the others get to leave their process group; beside a worker that hangs they can't, and Ray's default of
# 30 goes by in vain. Read in the controller, to which Ray hands on no such variable of the driver.
PG_SHUTDOWN_TIMEOUT = ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")


class WorkerFailureCallback(UserCallback):
    """Says which worker failed first to the eye, and how; the others are not waited for long."""

    def __init__(self, notices: Path) -> None:
        self._notices = notices

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        os.environ.setdefault(*PG_SHUTDOWN_TIMEOUT)
        # One that died is the cause; the others only missed it in a collective.
        rank, error = min(worker_exceptions.items(), key=lambda each: (not _has_died(each[1]), each[0]))
        text = " ".join(str(vars(error).get("health_check_failure", error)).split())[:MAX_CHARACTERS]
        log_event(self._notices, f"worker {rank} failed: {text}")


def _has_died(error: Exception) -> bool:
    return "health_check_failure" in vars(error)
