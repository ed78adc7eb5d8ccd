"""SIGTERM and Ctrl-C -> a request that the workers find at their next step; the second one ends the program at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from instruct_ray.errors import exit_terminated

Result = TypeVar("Result")
POLL_SECONDS = 0.2


class StopRequest:
    """Asks the workers of a run to stop behind their current step, through a file that all of them see."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self.signal: int | None = None
        """The signal that asked; None if nothing did."""

    def request_stop(self, number: int) -> None:
        """Ask for it."""
        self.signal = number
        self._path.touch()

    def clear(self) -> None:
        """Take the request back."""
        self._path.unlink(missing_ok=True)

    def reraise(self) -> NoReturn:
        """Go on as the signal would have it: as Ctrl-C, or as SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        exit_terminated()


@contextmanager
def stop_on_signal(path: Path, say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT within the block into a request; only the main thread gets signals."""
    request = StopRequest(path)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            request.reraise()
        request.request_stop(number)
        say("stopping behind this step; the same command continues")

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.clear()


def run_in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread of its own, so that this one hears signals, and that no signal breaks into it."""
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["result"] = work()
        except BaseException as error:  # handed over, whatever it is
            box["error"] = error

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if "error" in box:
        raise box["error"]
    result: Result = box["result"]
    return result
