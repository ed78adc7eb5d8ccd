"""A lock file in the folder of a run, so that only one process at a time works on the run."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from instruct_ray.background import PeriodicThread
from instruct_ray.errors import InputError

LOCK_FILE = ".lock"
# How often the owner renews the lock: it updates the time of the file.
RENEW_SECONDS = 5.0
# The owner on another host is considered dead when it has not renewed the lock for this long.
EXPIRY_SECONDS = 60.0


class LockOwner(BaseModel):
    """The process that holds a lock; the content of the lock file."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    process_start_time: float
    """Seconds since 1970. The process id alone does not identify a process: ids are reused."""
    token: str
    """Tells apart two locks that one process takes."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside the block, and renew it in the background.

    Raises:
        InputError: another process holds the lock. The message names it.
    """
    path, owner = folder / LOCK_FILE, _current_process()
    _acquire(path, owner)
    try:
        with PeriodicThread("run lock", partial(os.utime, path), RENEW_SECONDS):
            yield
    finally:
        # Another process may have taken the lock after it expired.
        if _read_owner(path) == owner:
            path.unlink()


def _current_process() -> LockOwner:
    return LockOwner(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start_time=psutil.Process().create_time(),
        token=uuid.uuid4().hex,
    )


def _acquire(path: Path, owner: LockOwner) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    claim = path.with_name(f"{LOCK_FILE}.{owner.token}")
    claim.write_text(owner.model_dump_json())
    try:
        current_owner = _read_owner(path)
        # Both times come from the clock of the file system, so the clocks of the hosts may differ.
        if current_owner is not None and _is_alive(current_owner, claim.stat().st_mtime - path.stat().st_mtime):
            raise InputError(
                f"{path.parent}: process {current_owner.pid} on {current_owner.host} is working on this run; wait for "
                "it or use another run.name"
            )
        claim.replace(path)
    finally:
        claim.unlink(missing_ok=True)
    # If two processes found the lock free, the last one to write it owns it.
    if _read_owner(path) != owner:
        raise InputError(
            f"{path.parent}: another process has just started to work on this run; wait for it or use another run.name"
        )


def _is_alive(owner: LockOwner, seconds_since_renewal: float) -> bool:
    if owner.host != socket.gethostname():
        return seconds_since_renewal < EXPIRY_SECONDS
    try:
        return bool(abs(psutil.Process(owner.pid).create_time() - owner.process_start_time) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _read_owner(path: Path) -> LockOwner | None:
    """The owner of a lock; None if there is no lock or its file is incomplete."""
    try:
        return LockOwner.model_validate(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return None
