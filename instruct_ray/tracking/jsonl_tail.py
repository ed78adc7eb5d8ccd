"""Reads the new lines of a JSONL file while another process appends to it or truncates it."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instruct_ray.background import PeriodicThread
from instruct_ray.errors import one_line

# Limit of one read, so that a long file is not held in memory.
MAX_BYTES = 2**20
POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


class JsonlTail:
    """Reads a file from where the last read ended; from its start again if it was truncated or rewritten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last_line = b""

    def read_new(self) -> list[dict[str, Any]]:
        """Return the next records, about 1 MiB of lines at a time; an empty list if there are none.

        A last line without a line feed is still being written, and is left for a later call.
        """
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                self._offset, self._last_line = 0, b""
                file.seek(0)
            content = file.read(MAX_BYTES)
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        if lines:
            self._offset += sum(map(len, lines))
            self._last_line = lines[-1]
        return [record for line in lines if (record := self._parse(line)) is not None]

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            logger.warning("%s: skipped a line that is not JSON: %.80r", self.path, line)
            return None
        return record


@contextmanager
def follow_jsonl(path: Path, on_record: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `on_record` in a thread with each new record while the block runs.

    Records that are left when the block ends are passed to `on_record` by the calling thread.
    """
    tail = JsonlTail(path)

    def read() -> None:
        while records := read_new():
            for record in records:
                on_record(record)

    def read_new() -> list[dict[str, Any]]:
        try:
            return tail.read_new()
        except OSError as error:
            # A file system that fails for a moment is read again at the next call.
            logger.warning("%s can't be read now: %s", path, one_line(error))
            return []

    try:
        with PeriodicThread("jsonl-tail", read, POLL_SECONDS):
            yield
    finally:
        read()
