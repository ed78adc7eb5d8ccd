"""One process at a time works on a run: a file in its folder that the holder keeps renewing."""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.errors import InputError

LOCK_FILE = ".lease"
RENEW_SECONDS = 5.0
# A holder on another machine that has not renewed for so long is gone.
EXPIRY_SECONDS = 60.0


class LockOwner(BaseModel):
    """Who holds a lease."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    started: float
    """Start of the process, seconds since 1970: process ids are used again."""
    token: str


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lease of a run's folder while the block runs.

    Raises:
        InputError: another process holds it; says which.
    """
    me = LockOwner(
        host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time(), token=uuid.uuid4().hex
    )
    path = folder / LOCK_FILE
    _take(path, me)
    stopped = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, stopped), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stopped.set()
        renewal.join()
        if _holder(path) == me:
            path.unlink()


def _take(path: Path, me: LockOwner) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{LOCK_FILE}.{me.token}")
    mine.write_text(me.model_dump_json())
    try:
        # Two files of one folder: their times come from one clock, whatever this machine's says.
        other = _holder(path)
        if other is not None and _is_alive(other, mine.stat().st_mtime - path.stat().st_mtime):
            raise InputError(
                f"{path.parent}: process {other.pid} on {other.host} is working on this run; wait for it or take "
                "another run.name"
            )
        mine.replace(path)
    finally:
        mine.unlink(missing_ok=True)
    # Of two that found it free, the last one to write has it.
    if _holder(path) != me:
        raise InputError(f"{path.parent}: another process has just begun to work on this run; take another run.name")


def _is_alive(holder: LockOwner, age: float) -> bool:
    if holder.host != socket.gethostname():
        return age < EXPIRY_SECONDS
    try:
        return bool(abs(psutil.Process(holder.pid).create_time() - holder.started) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _holder(path: Path) -> LockOwner | None:
    try:
        return LockOwner.model_validate(json.loads(path.read_text()))
    except (FileNotFoundError, ValidationError, ValueError):
        return None


def _renew(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(RENEW_SECONDS):
        os.utime(path)
