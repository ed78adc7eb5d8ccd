"""A function that is called every few seconds beside the main work."""

import threading
from collections.abc import Callable
from types import TracebackType


class PeriodicThread:
    """Calls a function every `seconds` in a daemon thread, from entering the context until leaving it."""

    def __init__(
        self, name: str, function: Callable[[], None], seconds: float, *, join_timeout: float | None = None
    ) -> None:
        """`join_timeout`: seconds to wait at the end for a call that is still running; None waits for it."""
        self._function, self._seconds, self._join_timeout = function, seconds, join_timeout
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> "PeriodicThread":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(self._join_timeout)

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._function()
