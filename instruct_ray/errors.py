"""What went wrong -> the exit code that says whose turn it is."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(ValueError):
    """What the user gave is wrong. The message is one line: what, where, and what to do about it."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """What ends a program -> its exit code: 2 bad input (one line), 1 failed (traceback), 130 and 143 stopped."""
    unwind_on_sigterm()
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def unwind_on_sigterm() -> None:
    """Let SIGTERM end the program like an exception, so that everything is closed. Ray takes the signal over when it
    starts: call this again after."""
    signal.signal(signal.SIGTERM, _terminate)


def end_terminated() -> NoReturn:
    """End as SIGTERM ends a program."""
    print("terminated; the same command continues", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)


def _terminate(number: int, frame: FrameType | None) -> None:
    end_terminated()
