"""worker, all ranks: what rank 0 sees in the run's folder, from a background thread that a slow storage may hold up."""

import time
from pathlib import Path
from types import TracebackType

from instruct_ray.background import PeriodicThread
from instruct_ray.run.lock import LockTicket

POLL_SECONDS = 0.2
LOCK_SECONDS = 2.0


class RunFolderMonitor:
    """Looks, while the context is entered, for a stop request of the driver and for another owner of the run.

    Rank 0 looks; its votes are summed with the step's totals. On other ranks nothing is ever seen.
    """

    def __init__(self, stop_file: Path, lock: LockTicket | None, rank: int) -> None:
        """`lock` is None in a trial run, whose folder no other process knows."""
        self._stop_file, self._lock = stop_file, lock
        self._lock_due = 0.0
        # Nothing waits for a storage that does not answer.
        self._thread = PeriodicThread("run folder", self._look, POLL_SECONDS, join_timeout=0.0) if rank == 0 else None
        self.stop_requested = False
        """Whether the driver asks to stop after the current step."""
        self.lock_is_lost = False
        """Whether another process has taken over the run."""

    def __enter__(self) -> "RunFolderMonitor":
        if self._thread:
            self._thread.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread:
            self._thread.__exit__(kind, error, trace)

    def _look(self) -> None:
        try:
            self.stop_requested = self._stop_file.exists()
        except OSError:
            # A file system that fails for a moment is asked again.
            return
        if self._lock is not None and time.monotonic() >= self._lock_due:
            self._lock_due = time.monotonic() + LOCK_SECONDS
            self.lock_is_lost = self._lock.is_lost()
