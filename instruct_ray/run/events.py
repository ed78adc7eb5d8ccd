"""Events of a run: one JSON line for each thing that the run decided by itself or that happened to it."""

import json
from pathlib import Path

from instruct_ray.files import append_json_line


def log_event(path: Path, message: str) -> None:
    """Append an event. Only one process of a run may call this at a time."""
    append_json_line(path, {"message": message})


class RunEvents:
    """Reads events that are written after this object is created."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = len(self._read_lines())

    def read_new(self) -> list[str]:
        """The messages written since the last call."""
        lines = self._read_lines()[self._num_read :]
        self._num_read += len(lines)
        return [str(json.loads(line)["message"]) for line in lines]

    def _read_lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        # A line without a line feed is still being written.
        return [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
