"""What went wrong -> the exit code that says whose turn it is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class InputError(ValueError):
    """What the user gave is wrong. The message is one line: what, where, and what to do about it."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn exceptions into exit codes: 2 bad input (one line), 1 failed (with traceback), 130 stopped by the user."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
