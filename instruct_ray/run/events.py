"""Events of a run: what it decided or met by itself, written where that happens and shown to whoever started it."""

import json
from pathlib import Path

from instruct_ray.files import append_json_line


def log_event(path: Path, message: str) -> None:
    """Append an event; one process calls it."""
    append_json_line(path, {"message": message})


class RunEvents:
    """Reads the events of a run from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = len(self._lines())

    def read_new(self) -> list[str]:
        """The messages since the last call."""
        lines = self._lines()[self._num_read :]
        self._num_read += len(lines)
        return [str(json.loads(line)["message"]) for line in lines]

    def _lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        # A line without its line feed is still being written.
        return [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
