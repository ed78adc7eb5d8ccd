"""What went wrong -> the exit code that says whose turn it is."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(ValueError):
    """What the user gave is wrong. The message is one line: what, where, and what to do about it."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what ends a program into exit codes: 2 bad input (one line), 1 failed (with traceback), 130 and 143 stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Unwind, so that everything is closed as on any other end."""
    print("terminated; the same command continues", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)
