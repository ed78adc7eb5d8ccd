"""Events of a run: one JSON line for each thing that the run decided by itself or that happened to it."""

import json
from pathlib import Path
from typing import Any


def event_record(message: str) -> dict[str, Any]:
    """The line of an event, for a `LineWriter`."""
    return {"message": message}


class RunEvents:
    """Reads events that are written after this object is created."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.is_file() else 0

    def read_new(self) -> list[str]:
        """The messages written since the last call; none while the file can't be read."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return []
        # A line without a line feed is still being written.
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        self._offset += sum(len(line) + 1 for line in lines)
        return [message for line in lines if (message := _parse(line)) is not None]


def _parse(line: bytes) -> str | None:
    """The message of a line; None if a killed process did not finish it."""
    try:
        return str(json.loads(line)["message"])
    except ValueError:
        return None
