"""The lock of a run, so that only one process at a time writes to the run's folder.

Its owner renews it by updating the time of its file, in the background and whenever it is about to write. An owner that
finds its lock taken over, or could not renew it for too long, stops before it writes again.
"""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.background import PeriodicThread
from instruct_ray.errors import InputError, RunFailedError, one_line
from instruct_ray.run.lock_file import LOCK_FILE, LockOwner, acquire, current_process, describe_owner, read_lock

# How often the owner renews the lock.
RENEW_SECONDS = 5.0
# An owner that could not renew the lock for this long stops, before another process may take the lock over.
MAX_UNRENEWED_SECONDS = 45.0
RELEASE_ATTEMPTS, RELEASE_RETRY_SECONDS = 3, 1.0
NOT_WRITABLE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

# What a message says about a run whose lock is lost.
TAKEN_OVER = "another process has taken over this run"

logger = logging.getLogger(__name__)


class RunLockLostError(RunFailedError):
    """Another process works on the run, or may do so: this one must not write to its folder any more."""


class LockTicket(BaseModel):
    """Names a held lock, so that processes which its owner has started, such as training workers, can check it."""

    model_config = ConfigDict(frozen=True)

    path: Path
    token: str

    def is_lost(self) -> bool:
        """Whether another process has taken the lock over. A file that can't be read now counts as held."""
        try:
            state = read_lock(self.path)
        except OSError:
            return False
        # A missing file is no proof: a network file system may still remember that there was none before.
        return state is not None and state.key != self.token

    def check(self) -> None:
        """Check that the lock is held. Call it before writing to the run's folder.

        Raises:
            RunLockLostError: another process has taken the lock over.
        """
        if self.is_lost():
            raise RunLockLostError(f"{self.path.parent}: {TAKEN_OVER}")


class RunLock:
    """A lock that this process holds."""

    def __init__(self, path: Path, owner: LockOwner) -> None:
        self._path, self._owner = path, owner
        self._renewed_at = time.monotonic()
        self._is_failing = False
        self._loss: str | None = None

    @property
    def ticket(self) -> LockTicket:
        """Names this lock to other processes."""
        return LockTicket(path=self._path, token=self._owner.token)

    def check(self) -> None:
        """Renew the lock. Call it before writing to the run's folder.

        Raises:
            RunLockLostError: another process has taken the lock over, or could not be kept from doing so.
        """
        self.renew()
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """Raise what `check` raises, by what the last renewal found."""
        if self._loss is not None:
            raise RunLockLostError(f"{self._path.parent}: {self._loss}; nothing more is written to it here")

    def is_lost(self) -> bool:
        """Whether the last renewal found that the lock is lost."""
        return self._loss is not None

    def renew(self) -> None:
        """Renew the lock unless it is lost. A file system that fails for a moment is asked again at the next call."""
        if self._loss is not None:
            return
        try:
            state = read_lock(self._path)
            if state is None or state.key != self._owner.token:
                self._loss = f"{TAKEN_OVER} ({describe_owner(state)})"
                return
            os.utime(self._path)
        except OSError as error:
            self._on_failure(error)
            return
        self._renewed_at, self._is_failing = time.monotonic(), False

    def _on_failure(self, error: OSError) -> None:
        if not self._is_failing:
            logger.warning("%s can't be renewed now (%s); trying again", self._path, one_line(error))
        self._is_failing = True
        if time.monotonic() - self._renewed_at > MAX_UNRENEWED_SECONDS:
            self._loss = f"the lock could not be renewed for {MAX_UNRENEWED_SECONDS:g} s ({one_line(error)})"

    def release(self) -> None:
        """Remove the lock file, unless the lock is lost."""
        for _ in range(RELEASE_ATTEMPTS):
            try:
                # A lock that has just been renewed is not being taken over.
                self.renew()
                if self._loss is None:
                    self._path.unlink(missing_ok=True)
                return
            except OSError as error:
                logger.warning("%s can't be removed now (%s)", self._path, one_line(error))
                time.sleep(RELEASE_RETRY_SECONDS)


@contextmanager
def run_lock(folder: Path) -> Iterator[RunLock]:
    """Hold the lock of a run folder inside the block, and renew it in the background.

    Waits, up to EXPIRY_SECONDS, for an owner on another machine that may be dead.

    Raises:
        InputError: another process holds the lock, which the message names, or the folder can't be written.
    """
    path, owner = folder / LOCK_FILE, current_process()
    new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        acquire(path, owner)
    except OSError as error:
        if error.errno not in NOT_WRITABLE_ERRORS:
            raise
        raise InputError(f"run.storage: {folder} can't be written ({one_line(error)})") from None
    lock = RunLock(path, owner)
    try:
        with PeriodicThread("run lock", lock.renew, RENEW_SECONDS):
            yield lock
    finally:
        lock.release()
        with suppress(OSError):
            for parent in new_folders:
                # Fails for a folder that is not empty: something was written to the run.
                parent.rmdir()
