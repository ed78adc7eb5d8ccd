"""Atomic writes of files and folders, JSON lines, and digests of files."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


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
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block succeeds and removed when it raises."""
    temporary = _temporary_path(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in new_parents:
                # Fails for a folder that is not empty: it is needed.
                parent.rmdir()


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
