"""Atomic writes of files and folders, JSON lines, and digests of files."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Errors of a full disk, an exceeded quota, and a file that is too large for its file system.
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of a network file system that fails for a moment.
TRANSIENT_ERRORS = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EREMOTEIO)


def is_temporary(error: OSError) -> bool:
    """Whether an operation may succeed later: the disk is full, or the storage fails for a moment."""
    return error.errno in (*DISK_FULL_ERRORS, *TRANSIENT_ERRORS)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write a value as JSON. A reader sees either the old file or the complete new one."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def atomic_write_text(path: Path, text: str) -> None:
    """Write text. A reader sees either the old file or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def atomic_directory(path: Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block succeeds and removed when it raises.

    A folder that is at `path` by then is replaced. With `keep_existing` it stays, and the new one is removed: for
    caches that several processes fill and read, where all write the same content.
    """
    temporary = _temporary_path(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if keep_existing:
            _rename_unless_exists(temporary, path)
        else:
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in new_parents:
                # Fails for a folder that is not empty: it is needed.
                parent.rmdir()


def _rename_unless_exists(folder: Path, path: Path) -> None:
    try:
        # Fails if there is a folder with files.
        folder.rename(path)
    except OSError:
        if not path.is_dir():
            raise


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append `values` as one line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_path(path: Path) -> Path:
    """A unique path in the folder of `path`. Not made of the process id: several machines may share the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
