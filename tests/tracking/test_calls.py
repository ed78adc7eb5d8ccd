"""Calls of MLflow that fail: how often they are tried, and what the error says."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.tracking import calls
from instruct_ray.tracking.calls import call_with_retries, mlflow_errors, short_http_timeouts
from instruct_ray.tracking.registry_reader import RegistryReader

LOCKED = MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]", TEMPORARILY_UNAVAILABLE)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_WAIT_SECONDS", 0.01)


def test_temporary_error_is_tried_again() -> None:
    errors: Iterator[Exception] = iter([LOCKED, LOCKED])

    def call() -> str:
        for error in errors:
            raise error
        return "done"

    assert call_with_retries("sqlite:///x", call) == "done"


def test_locked_database_is_one_line_in_the_end() -> None:
    attempts = []

    def call() -> None:
        attempts.append(1)
        raise LOCKED

    with pytest.raises(UnavailableError) as error:
        call_with_retries("postgresql://anna:secret@db/mlflow", call)
    assert len(attempts) == 3
    assert str(error.value) == (
        "registry.uri: postgresql://db/mlflow can't be used now: (sqlite3.OperationalError) database is locked; run "
        "the same command again later"
    )


def test_rejected_request_is_not_tried_again() -> None:
    attempts = []

    def call() -> None:
        attempts.append(1)
        raise MlflowException("a prompt has this name", INVALID_PARAMETER_VALUE)

    with pytest.raises(InputError, match=r"registry.uri: http://x rejects the request: a prompt has this name"):
        call_with_retries("http://x", call)
    assert len(attempts) == 1


def test_transfer_of_files_has_the_same_errors() -> None:
    with pytest.raises(UnavailableError, match="can't be used now"), mlflow_errors("http://x"):
        raise LOCKED


def test_dead_server_is_reported_soon() -> None:
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"registry.uri: http://127.0.0.1:9 can't be used now: API request to"):
        RegistryReader("http://127.0.0.1:9").aliases("tiny")
    assert time.monotonic() - start < 20


def test_denied_access_names_the_variables() -> None:
    class DenyingHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401, "You are not authenticated")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), DenyingHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=r"denies access .*set MLFLOW_TRACKING_USERNAME"):
            RegistryReader(f"http://127.0.0.1:{server.server_port}").aliases("tiny")
        server.shutdown()


def test_database_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    reader = RegistryReader(f"sqlite:///{tmp_path}/mlflow.db")
    assert reader.model_names() == []
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.0, lambda: lock.execute("ROLLBACK")).start()
    assert reader.model_names() == []


def test_timeouts_are_restored_once_no_thread_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the last of overlapping calls would keep the limit of a request for uploads of files."""
    variable = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.setenv(variable, "120")
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def second() -> None:
        with short_http_timeouts(10):
            second_is_in.set()
            assert first_is_out.wait(10)

    thread = threading.Thread(target=second)
    with short_http_timeouts(10):
        thread.start()
        assert second_is_in.wait(10)
    assert os.environ[variable] == "10"
    first_is_out.set()
    thread.join()
    assert os.environ[variable] == "120"
