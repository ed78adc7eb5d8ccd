"""What a run decides by itself, from the worker that decides to the person who started it."""

import json
from pathlib import Path


def note(path: Path, text: str) -> None:
    """Append a notice; one rank calls it."""
    with path.open("a") as file:
        file.write(json.dumps({"notice": text}, ensure_ascii=False) + "\n")


class Notices:
    """The notices of a run from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = len(self._lines())

    def new(self) -> list[str]:
        """Those since the last call."""
        lines = self._lines()[self._num_read :]
        self._num_read += len(lines)
        return [str(json.loads(line)["notice"]) for line in lines]

    def _lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        # A line without its line feed is still being written.
        return [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
