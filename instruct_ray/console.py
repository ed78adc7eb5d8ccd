"""A status line for long commands: live on a terminal, elsewhere a plain line every few seconds, later less often."""

import sys
import time
from types import TracebackType

from rich.console import Console

from instruct_ray.background import PeriodicThread

REFRESH_SECONDS = 0.2
# How often a line is printed where there is no terminal: at first, and at last, so that the log of a day can be read.
LOG_SECONDS, MAX_LOG_SECONDS = 4.0, 60.0
# From 10 minutes on, the pauses are this share of the time so far.
LOG_FRACTION = LOG_SECONDS / 600


class StatusLine:
    """Shows what a command is doing and for how long. Call it with a text to change what it shows."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = self._console.status("") if self._console.is_terminal else None
        self._started = self._printed_at = time.monotonic()
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
        now = time.monotonic()
        line = f"{self._title}: {self._text} ({now - self._started:.0f} s)"
        if self._live:
            self._live.update(line)
        elif now - self._printed_at >= plain_pause(now - self._started) - LOG_SECONDS / 2:
            self._printed_at = now
            self._console.print(line, markup=False)
            sys.stdout.flush()


def plain_pause(seconds: float) -> float:
    """The seconds between two plain lines of a command that has run for so long."""
    return min(MAX_LOG_SECONDS, max(LOG_SECONDS, LOG_FRACTION * seconds))
