"""What is going on -> one live line on a terminal, plain lines elsewhere, never silence."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console

SILENCE_SECONDS = 4.0


class Status:
    """Shows what an arrow is doing. On a terminal one line changes in place; in a log a line appears when the text
    changes, at most every few seconds, and when nothing changed for a while."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = self._console.status("") if self._console.is_terminal else None
        self._began = time.monotonic()
        self._text = "starting"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._show, name="status", daemon=True)

    def __enter__(self) -> "Status":
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def __call__(self, text: str) -> None:
        """Say what is happening now."""
        self._text = text

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False)

    def _show(self) -> None:
        interval = 0.2 if self._live else SILENCE_SECONDS
        while not self._stopped.wait(interval):
            line = f"{self._title}: {self._text} ({time.monotonic() - self._began:.0f} s)"
            if self._live:
                self._live.update(line)
            else:
                self._console.print(line, markup=False)
                sys.stdout.flush()
