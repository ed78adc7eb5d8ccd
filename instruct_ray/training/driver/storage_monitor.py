"""driver: reports what the workers say about the run's storage while it is full, slow or failing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instruct_ray.background import PeriodicThread
from instruct_ray.training.worker.storage_notice import read_storage_problem

POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


@contextmanager
def report_storage_problems(run_dir: Path) -> Iterator["StorageReporter"]:
    """Log, inside the block, when the storage of a run begins to fail and when it works again."""
    reporter = StorageReporter(run_dir)
    with PeriodicThread("storage", reporter.check, POLL_SECONDS):
        yield reporter


class StorageReporter:
    """Logs changes of what is wrong with the storage of a run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._problem: str | None = None

    @property
    def has_problem(self) -> bool:
        """Whether the storage is full, slow or failing."""
        return self._problem is not None

    def check(self) -> None:
        """Look whether something has changed."""
        problem = read_storage_problem(self._run_dir)
        if problem == self._problem:
            return
        self._problem = problem
        if problem is None:
            logger.warning("run.storage: %s can be written again", self._run_dir)
        else:
            logger.warning("run.storage: %s; training goes on, and what it writes is kept and tried again", problem)
