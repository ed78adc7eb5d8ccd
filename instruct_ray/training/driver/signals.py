"""driver: SIGTERM and Ctrl-C -> a stop request that the workers see at their next step."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from instruct_ray.errors import exit_terminated, one_line

Result = TypeVar("Result")
POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)


class StopRequest:
    """Asks the workers of a run to stop after their current step, through a file that all of them see."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self.signal: int | None = None
        """The signal that requested the stop; None if none did."""

    def request_stop(self, number: int) -> None:
        """Request a stop because of a signal."""
        self.signal = number
        try:
            self._path.touch()
        except OSError as error:
            logger.warning("the workers can't be asked to stop (%s): repeat the signal to end at once", one_line(error))

    def clear(self) -> None:
        """Withdraw the request."""
        if self.signal is not None:
            self._path.unlink(missing_ok=True)

    def reraise(self) -> NoReturn:
        """End the program as the signal would have done."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        exit_terminated()


@contextmanager
def stop_on_signal(path: Path, status: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT inside the block into a stop request. The second one ends the program.

    Only the main thread receives signals; in another thread nothing is ever requested.
    """
    request = StopRequest(path)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            request.reraise()
        request.request_stop(number)
        status("stopping after this step; rerun the same command to resume")

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous_handlers = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        request.clear()


def run_in_thread(function: Callable[[], Result], check: Callable[[], None]) -> Result:
    """Call a function in its own thread, so that this thread can handle signals and none interrupts the function.

    `check` is called in this thread every POLL_SECONDS; an exception that it raises ends the wait for the function.
    """
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["result"] = function()
        except BaseException as error:  # raised again in the calling thread
            box["error"] = error

    thread = threading.Thread(target=run, name="ray train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        check()
    if "error" in box:
        raise box["error"]
    result: Result = box["result"]
    return result
