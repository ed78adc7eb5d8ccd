"""driver: the answers that were given so far, so that an evaluation that was killed asks for none of them again.

One JSON line each: `{"key", "value"}`. The key is a digest of all that decides the answer (model, prompt, limit), so an
answer counts exactly as long as it would be given again. The last line may be half written.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

JOURNAL_FILE = "journal.jsonl"


def make_key(*content: Any) -> str:
    """The digest of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Journal:
    """Values by key, appended to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._values = _read(path)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Record values; they are on disk when this returns."""
        for key, value in entries:
            self._values[key] = value
            self._file.write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Remove the file, once what it was for is written."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """Read the complete lines, and cut off what a killed process left after them."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    values: dict[str, Any] = {}
    for line in content[:end].split(b"\n"):
        # A machine that lost power may leave a block of zeros.
        if line.startswith(b"{") and line.endswith(b"}"):
            entry = json.loads(line)
            values[entry["key"]] = entry["value"]
    return values
