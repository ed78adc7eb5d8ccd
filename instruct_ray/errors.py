"""Errors, their text in one line, and the exit codes that tell bad input from a failure of the system."""

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
    """The user's input is wrong. The message is one line: what is wrong, where, and what to do about it."""


def one_line(error: Exception, max_characters: int | None = None) -> str:
    """The text of an error with all white space collapsed; of an `OSError` only what the system says."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:max_characters]


def last_line(error: Exception) -> str:
    """The last line of an error's text: of an error that Ray hands on, what the task itself raised."""
    return (str(error).strip().splitlines() or [""])[-1]


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program with 2 on bad input (one line), 1 on failure (traceback), 130 or 143 when it is stopped."""
    exit_on_sigterm()
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise `SystemExit`, so that everything is closed. Ray replaces the handler when it starts: call this
    again afterwards."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def exit_terminated() -> NoReturn:
    """Exit as after SIGTERM."""
    print("terminated; rerun the same command to resume", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    exit_terminated()
