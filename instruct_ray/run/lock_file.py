"""The file of a run lock: creating it, and replacing that of an owner that died. Each succeeds for one process only.

The file is created exclusively, which is atomic on local and on network file systems. The lock of a dead owner is
replaced by the process that first creates a file named after that owner's token, which gives the right to replace this
lock and no other.
"""

import itertools
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from instruct_ray.errors import InputError

LOCK_FILE = ".lock"
# An owner whose process can't be looked up is considered dead when it has not renewed the lock for this long.
EXPIRY_SECONDS = 60.0
# How often a process that waits for a lock to expire looks at it.
POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


class LockOwner(BaseModel):
    """The process that holds a lock; the content of the lock file."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    process_start_time: float
    """Seconds since 1970. The process id alone does not identify a process: ids are reused."""
    token: str
    """Tells apart two locks that one process takes."""
    pid_namespace: str = ""
    """Where the process id is valid: containers may share a host's name but not its process ids. Empty in locks of
    earlier versions."""


@dataclass(frozen=True)
class LockState:
    """A lock file as it was read."""

    owner: LockOwner | None
    """None if the file is incomplete: it is being written, or its owner died while writing it."""
    modified_at: float
    """By the clock of the file system."""

    @property
    def key(self) -> str:
        """Identifies this lock; never used again for another one."""
        return f"incomplete-{self.modified_at}" if self.owner is None else self.owner.token


def current_process() -> LockOwner:
    """This process as the owner of a new lock."""
    return LockOwner(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start_time=psutil.Process().create_time(),
        token=uuid.uuid4().hex,
        pid_namespace=_pid_namespace(),
    )


def _pid_namespace() -> str:
    """Identifies the process ids that this process sees; empty where the system doesn't tell."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def acquire(path: Path, owner: LockOwner) -> None:
    """Create the lock file, or replace that of a dead owner.

    Waits, up to EXPIRY_SECONDS, for an owner that may be dead: one on another machine that is not seen to renew it.

    Raises:
        InputError: another process holds the lock. The message names it.
        OSError: the folder can't be written.
    """
    # The lock as it was when this process began to wait for it to be renewed or to expire.
    first: LockState | None = None
    while not _create(path, owner):
        state = read_lock(path)
        if state is None:
            # Released in the meantime.
            continue
        if _is_dead(path, state):
            if _replace(path, state, owner):
                return
        elif _is_alive(state, first):
            raise InputError(
                f"{path.parent}: {describe_owner(state)} is working on this run; wait for it or use another run.name"
            )
        elif first is None and state.owner is not None:
            first = state
            logger.warning(
                "%s: waiting up to %g s to see whether %s still works on this run",
                *(path.parent, EXPIRY_SECONDS, describe_owner(state)),
            )
        time.sleep(POLL_SECONDS)


def _is_dead(path: Path, state: LockState) -> bool:
    if state.owner is not None and _sees_process(state.owner):
        return not _is_running(state.owner)
    # Both times come from the clock of the file system, so the clocks of the machines may differ.
    return _file_system_time(path) - state.modified_at >= EXPIRY_SECONDS


def _is_alive(state: LockState, first: LockState | None) -> bool:
    """Whether the owner certainly works on the run; false while that is unknown."""
    if state.owner is None:
        return False
    return _sees_process(state.owner) or (first is not None and state != first)


def _sees_process(owner: LockOwner) -> bool:
    """Whether this process can look up the owner by its process id."""
    return owner.host == socket.gethostname() and owner.pid_namespace == _pid_namespace()


def _is_running(owner: LockOwner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        # A zombie has ended: a container without an init process keeps it for ever.
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return not is_zombie and abs(process.create_time() - owner.process_start_time) < 1.0
    except psutil.NoSuchProcess:
        return False


def _create(path: Path, owner: LockOwner) -> bool:
    """Create a file with an owner; false if it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(owner.model_dump_json())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _replace(path: Path, dead: LockState, owner: LockOwner) -> bool:
    """Replace the lock of a dead owner; false if another process does that, or if the lock has changed."""
    with _right_to_replace(path, dead.key, owner) as is_granted:
        current = read_lock(path) if is_granted else None
        # Another process may have replaced it before, and the owner may have renewed it.
        if current is None or current.key != dead.key or not _is_dead(path, current):
            return False
        claim = path.with_name(f"{LOCK_FILE}.{owner.token}")
        claim.write_text(owner.model_dump_json())
        claim.replace(path)
        return True


@contextmanager
def _right_to_replace(path: Path, key: str, owner: LockOwner) -> Iterator[bool]:
    """Whether this process alone may replace the lock with this key, inside the block.

    The right is a file. That of a process which died while it had the right is not removed, which another process
    could have done as well and created its own: the next process gets the right by a file with the next number.
    """
    for number in itertools.count():
        right = path.with_name(f"{LOCK_FILE}.{key}.{number}")
        if _create(right, owner):
            break
        state = read_lock(right)
        if state is None or not _is_dead(path, state):
            yield False
            return
    try:
        yield True
    finally:
        for earlier in range(number + 1):
            path.with_name(f"{LOCK_FILE}.{key}.{earlier}").unlink(missing_ok=True)


def read_lock(path: Path) -> LockState | None:
    """Read a lock file; None if there is none.

    Raises:
        OSError: it can't be read now.
    """
    try:
        # Opening it makes a network file system fetch its current time.
        with path.open("rb") as file:
            modified_at, content = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None
    try:
        return LockState(LockOwner.model_validate_json(content), modified_at)
    except ValueError:
        return LockState(None, modified_at)


def _file_system_time(path: Path) -> float:
    """The current time by the clock of the lock's file system, in seconds since 1970."""
    probe = path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
    try:
        with probe.open("wb") as file:
            file.write(b"0")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    finally:
        with suppress(OSError):
            probe.unlink()


def describe_owner(state: LockState | None) -> str:
    """The owner of a lock, for messages."""
    if state is None or state.owner is None:
        return "another process"
    return f"process {state.owner.pid} on {state.owner.host}"
