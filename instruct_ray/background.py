"""A function that runs every few seconds in a background thread."""

import threading
from collections.abc import Callable
from types import TracebackType


class PeriodicThread:
    """A context manager that calls a function every `seconds` in a daemon thread.

    The first call comes after `seconds`; `at_start_and_end` adds one at the start and one when the context is left.
    Leaving the context ends the thread: it waits `join_timeout` seconds for a call that is still running, or until that
    call returns if `join_timeout` is None.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], None],
        seconds: float,
        *,
        at_start_and_end: bool = False,
        join_timeout: float | None = None,
    ) -> None:
        self._function, self._seconds, self._join_timeout = function, seconds, join_timeout
        self._at_start_and_end = at_start_and_end
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
        if self._at_start_and_end:
            self._function()
        while not self._stopped.wait(self._seconds):
            self._function()
        if self._at_start_and_end:
            self._function()
