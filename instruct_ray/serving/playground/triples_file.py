"""gateway: appends rows to a JSONL file, each completely or not at all, also when several processes do."""

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from instruct_ray.errors import InputError


class TriplesFileFullError(Exception):
    """A row would make the file larger than `serving.max_feedback_bytes`."""


class TriplesFile:
    """The file `serving.feedback_file`. It is opened for each row, so it may be moved or emptied at any time."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Check the folder; the file is made by its first row and gets at most `max_bytes`.

        Raises:
            InputError: there is no such folder, or no file can be written there.
        """
        target = path if path.exists() else path.parent
        if not path.parent.is_dir():
            raise InputError(f"serving.feedback_file: there is no folder {path.parent}; make it")
        if path.is_dir() or not os.access(target, os.W_OK):
            raise InputError(f"serving.feedback_file: {path} can't be written")
        self._path, self._max_bytes = path, max_bytes

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, and return when it is on the disk.

        Raises:
            OSError: it could not be written; nothing of it is in the file.
            TriplesFileFullError: the file has no room for it.
        """
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with FileIO(self._path, "a+") as file:
            # Of this open file: it excludes other threads and processes, and ends when the file is closed.
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            # After a line that a killed process did not finish.
            content = line if _ends_with_line(file, size) else b"\n" + line
            if size + len(content) > self._max_bytes:
                raise TriplesFileFullError(f"{self._path} may have at most {self._max_bytes} bytes")
            try:
                _write(file, content)
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise


def _ends_with_line(file: FileIO, size: int) -> bool:
    """Whether a file of `size` bytes is empty or ends with a line."""
    file.seek(max(0, size - 1))
    return size == 0 or file.read(1) == b"\n"


def _write(file: FileIO, content: bytes) -> None:
    """Write all of the content: one write may write a part of it."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
