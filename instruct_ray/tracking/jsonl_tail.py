"""A file of JSON lines that grows -> its new lines; whoever writes it may also cut it."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read at once: bounds what is held of a long file.
MAX_BYTES = 2**20
POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


class JsonlTail:
    """Reads a file from where the last read ended. A file that was cut there, or rewritten, is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last = b""

    def read_new(self) -> list[dict[str, Any]]:
        """The next lines, about 1 MiB of them; none if there is nothing new. A line without its line feed is still
        being written."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._offset, self._last = 0, b""
                file.seek(0)
            content = file.read(MAX_BYTES)
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        if lines:
            self._offset += sum(map(len, lines))
            self._last = lines[-1]
        return [record for line in lines if (record := self._parsed(line)) is not None]

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            logger.warning("%s: a line is damaged and left out: %.80r", self.path, line)
            return None
        return record


@contextmanager
def follow_jsonl(path: Path, on_record: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `on_record`, in a thread, with each line while the block runs, and with those that are left at its end."""
    tail, stopped = JsonlTail(path), threading.Event()

    def read() -> None:
        while records := tail.read_new():
            for record in records:
                on_record(record)

    def follow() -> None:
        while not stopped.wait(POLL_SECONDS):
            read()

    thread = threading.Thread(target=follow, name="tail", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        read()
