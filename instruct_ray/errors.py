"""Input errors, error texts in one line, and the exit codes of the commands."""

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
# The gate of the registry refused a version.
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, where, and what to do about it."""


class RunFailedError(RuntimeError):
    """A run can't go on, for a known reason. The message is one line: which run, why, and what to do."""


class UnavailableError(RuntimeError):
    """A server or database can't be used at the moment. The message is one line: which, why, and what to do."""


def one_line(error: Exception, max_characters: int | None = None) -> str:
    """The text of an error with white space collapsed; of an `OSError` only the description of its error number.

    Of an error without text the name of its type.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:max_characters]


def last_line(error: Exception) -> str:
    """The last line of an error's text. In an error of a Ray task it describes what the task itself raised."""
    return (str(error).strip().splitlines() or [""])[-1]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn how the block ends into the exit code of the program.

    Bad input exits with 2 and one line on stderr, a failure with a known reason with 1 and one line, Ctrl-C with 130
    and SIGTERM with 143. Any other exception exits with 1, a traceback and then one line: the end of a log is where
    its reader looks for the reason.
    """
    exit_on_sigterm()
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
    except (RunFailedError, UnavailableError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:  # also those that nobody has thought of
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {last_line(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise `SystemExit`, so that `finally` blocks run.

    Ray installs its own handler when it starts, so call this again afterwards.
    """
    signal.signal(signal.SIGTERM, _on_sigterm)


def exit_terminated() -> NoReturn:
    """Exit with the code and the message for SIGTERM."""
    print("terminated; rerun the same command to resume", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    exit_terminated()
