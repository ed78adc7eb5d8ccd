"""A status line for long commands: live on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console

from instruct_ray.background import PeriodicThread

REFRESH_SECONDS = 0.2
# How often a line is printed where there is no terminal.
LOG_SECONDS = 4.0


class StatusLine:
    """Shows what a command is doing and for how long. Call it with a text to change what it shows."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = self._console.status("") if self._console.is_terminal else None
        self._started = time.monotonic()
        self._text = "starting"
        self._thread = PeriodicThread("status", self._show, REFRESH_SECONDS if self._live else LOG_SECONDS)

    def __enter__(self) -> "StatusLine":
        if self._live:
            self._live.start()
        self._thread.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.__exit__(kind, error, trace)
        if self._live:
            self._live.stop()

    def __call__(self, text: str) -> None:
        """Show `text` from now on."""
        self._text = text

    def _show(self) -> None:
        line = f"{self._title}: {self._text} ({time.monotonic() - self._started:.0f} s)"
        if self._live:
            self._live.update(line)
        else:
            self._console.print(line, markup=False)
            sys.stdout.flush()
