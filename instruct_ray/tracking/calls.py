"""Calls of MLflow: short timeouts, a few attempts, and errors in one line."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.tracking.uploader import redact_credentials

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    MlflowError: TypeAlias = MlflowException | OperationalError | RequestException

T = TypeVar("T")
# Of a call of the registry: how often it is tried, and the wait before the second attempt, which doubles then.
# MLflow itself waits 20 seconds for a locked SQLite database.
NUM_ATTEMPTS = 3
FIRST_WAIT_SECONDS = 1.0
REQUEST_SECONDS = 10


def call_with_retries(uri: str, function: Callable[[], T]) -> T:
    """Call MLflow; try again a few times if its server does not respond or its database is locked.

    Raises:
        UnavailableError: it still does not respond.
        InputError: it denies access or rejects the request.
    """
    wait = FIRST_WAIT_SECONDS
    for attempts_left in reversed(range(NUM_ATTEMPTS)):
        try:
            with short_http_timeouts(REQUEST_SECONDS), _without_tracebacks():
                return function()
        except ModuleNotFoundError as error:
            raise _describe_missing_driver(uri, error) from None
        except _error_types() as error:
            if not _is_temporary(error) or not attempts_left:
                raise _describe(uri, error) from None
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Raise MLflow's errors in the block as `call_with_retries` does, without trying again: for transfers of files.

    Raises:
        UnavailableError: MLflow or its store of files does not respond.
        InputError: it denies access or rejects the request.
    """
    try:
        with _without_tracebacks():
            yield
    except _error_types() as error:
        raise _describe(uri, error) from None


class _ShortTimeouts:
    """The environment variables of `short_http_timeouts`, for the blocks of all threads.

    The first block sets them, and the last one restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_blocks = 0
        self._previous: dict[str, str | None] = {}

    def enter(self, seconds: int) -> None:
        short = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        with self._lock:
            if not self._num_blocks:
                self._previous = {name: os.environ.get(name) for name in short}
            self._num_blocks += 1
            os.environ.update(short)

    def leave(self) -> None:
        with self._lock:
            self._num_blocks -= 1
            if self._num_blocks:
                return
            for name, value in self._previous.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


_short_timeouts = _ShortTimeouts()


@contextmanager
def short_http_timeouts(seconds: int) -> Iterator[None]:
    """Make MLflow give up on a request soon, without retries.

    MLflow reads these variables of the process at every request. They are restored once no thread is in such a block,
    for uploads of artifacts, which take longer.
    """
    _short_timeouts.enter(seconds)
    try:
        yield
    finally:
        _short_timeouts.leave()


def is_auth_error(error: Exception) -> bool:
    """Whether MLflow denies access (401 or 403)."""
    return isinstance(error, _error_types()) and _http_status(error) in (401, 403)


def short_reason(error: Exception) -> str:
    """Describe an error in one short line, without the HTML page that a proxy may have sent."""
    text, _, _ = str(error).partition(". Response body")
    # SQLAlchemy appends the statement.
    text, _, _ = text.partition("\n[SQL:")
    return redact_credentials(" ".join(text.split()))[:200]


def _error_types() -> "tuple[type[MlflowException], type[OperationalError], type[RequestException]]":
    """What calls of MLflow raise. Transfers of files raise errors of `requests` too."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  (see connect_mlflow)
    from requests import RequestException  # noqa: PLC0415
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415

    return MlflowException, OperationalError, RequestException


def _http_status(error: "MlflowError") -> int | None:
    """The HTTP status of an error; None if there was no response."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  (see connect_mlflow)
    from requests import RequestException  # noqa: PLC0415

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    response = error.response if isinstance(error, RequestException) else None
    return None if response is None else response.status_code


def _is_temporary(error: "MlflowError") -> bool:
    status = _http_status(error)
    return status is None or status == 429 or status >= 500


def _describe_missing_driver(uri: str, error: ModuleNotFoundError) -> InputError:
    hint = "; pip install 'instruct-ray[postgresql]'" if error.name == "psycopg" else ""
    return InputError(f"registry.uri: {redact_credentials(uri)} needs the package {error.name}{hint}")


def _describe(uri: str, error: "MlflowError") -> Exception:
    server, reason = redact_credentials(uri), short_reason(error)
    if is_auth_error(error):
        return InputError(
            f"registry.uri: {server} denies access ({reason}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if _is_temporary(error):
        return UnavailableError(f"registry.uri: {server} can't be used now: {reason}; run the same command again later")
    return InputError(f"registry.uri: {server} rejects the request: {reason}")


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Silence MLflow's own logging of a database error, which is a traceback; the error is raised anyway."""
    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
