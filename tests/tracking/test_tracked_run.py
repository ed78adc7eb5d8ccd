"""Tracking during outages: a server that hangs or dies and comes back, a locked database, denied access."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import make_url

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking import tracked_run
from instruct_ray.tracking.mlflow_client import local_artifacts, tracking_uri
from instruct_ray.tracking.tracked_run import (
    RECORD_FILE,
    START_SECONDS,
    TrackedRun,
    TrackingRecord,
    finish_pending_upload,
    load_tracking_record,
)
from instruct_ray.tracking.uploader import redact_credentials
from tests.mlflow_server import MlflowServer

# Shorter than in use, so that the tests are fast.
FINISH_SECONDS = 3.0
REQUEST_SECONDS = 2


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_run, "FINISH_SECONDS", FINISH_SECONDS)
    monkeypatch.setattr(tracked_run, "REQUEST_SECONDS", REQUEST_SECONDS)
    monkeypatch.setattr(tracked_run, "MAX_RETRY_SECONDS", 1.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def append_steps(config: Config, first: int, last: int, node: int | None = None) -> None:
    """Append lines as a worker writes them: metrics, or the system metrics of a node."""
    folder = RunFolder.from_config(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.metrics_file if node is None else folder.path / f"system-{node}.jsonl"
    values = {"loss": 2.5, "lr": 1e-3} if node is None else {"cpu_utilization_percentage": 50.0}
    with path.open("a") as file:
        for step in range(first, last + 1):
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def uploaded_steps(config: Config, run_id: str | None, key: str = "loss") -> list[int]:
    assert run_id is not None
    client = mlflow.MlflowClient(tracking_uri(config))
    return [point.step for point in client.get_metric_history(run_id, key)]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_hanging_or_dead_server_only_delays_the_upload(
    make_config: Callable[..., Config], server: MlflowServer
) -> None:
    config, warnings = make_config(registry={"uri": server.uri}), []
    tracked = TrackedRun(config, warnings.append)
    tracked.start()
    append_steps(config, 1, 100)
    append_steps(config, 0, 3, node=0)
    # `start` does not wait long for a slow server.
    wait_until(lambda: tracked.id is not None and len(uploaded_steps(config, tracked.id)) == 100)
    assert all("no response" in warning for warning in warnings)
    warnings.clear()

    server.pause()
    append_steps(config, 101, 200)
    wait_until(lambda: len(warnings) == 1)
    assert "training continues" in warnings[0]
    server.resume()
    wait_until(lambda: len(uploaded_steps(config, tracked.id)) == 200)
    wait_until(lambda: warnings[1:] == [f"tracking: {server.uri} responds again"])

    server.kill()
    append_steps(config, 201, 300)
    wait_until(lambda: len(warnings) == 3)
    server.start()
    wait_until(lambda: len(warnings) == 4)
    assert tracked.finish("FINISHED")
    assert uploaded_steps(config, tracked.id) == list(range(1, 301))
    assert uploaded_steps(config, tracked.id, "lr") == list(range(1, 301))
    assert uploaded_steps(config, tracked.id, "system/node_0/cpu_utilization_percentage") == [0, 1, 2, 3]
    mlflow_run = mlflow.MlflowClient(server.uri).get_run(tracked.id)
    assert (mlflow_run.info.status, mlflow_run.data.params["train.learning_rate"]) == ("FINISHED", "0.001")


def test_finish_gives_up_on_a_silent_server_and_the_upload_can_be_resumed(
    make_config: Callable[..., Config], server: MlflowServer
) -> None:
    config, warnings = make_config(registry={"uri": server.uri}), []
    tracked = TrackedRun(config, warnings.append)
    tracked.start()
    append_steps(config, 1, 10)
    wait_until(lambda: tracked.id is not None and len(uploaded_steps(config, tracked.id)) == 10)
    server.pause()
    append_steps(config, 11, 20)
    start = time.monotonic()
    assert not tracked.finish("FINISHED")
    assert time.monotonic() - start < FINISH_SECONDS + 2
    assert "tracking is incomplete" in warnings[-1]
    assert "run `instruct-ray tune` again with the same config to upload the rest" in warnings[-1]
    assert not load_tracking_record(config).is_uploaded

    server.resume()
    assert finish_pending_upload(config, warnings.append) == tracked.id
    assert load_tracking_record(config).is_uploaded
    assert uploaded_steps(config, tracked.id) == list(range(1, 21))
    assert mlflow.MlflowClient(server.uri).get_run(tracked.id).info.status == "FINISHED"


def test_training_starts_without_a_server_and_uploads_later(
    make_config: Callable[..., Config], server: MlflowServer
) -> None:
    config, warnings = make_config(registry={"uri": server.uri}), []
    server.kill()
    tracked = TrackedRun(config, warnings.append)
    start = time.monotonic()
    tracked.start()
    assert time.monotonic() - start < START_SECONDS
    assert "training continues, and its metrics are uploaded when" in warnings[0]
    assert tracked.id is None
    append_steps(config, 1, 10)
    server.start()
    wait_until(lambda: tracked.id is not None)
    assert tracked.finish("KILLED")
    assert uploaded_steps(config, tracked.id) == list(range(1, 11))

    # A resumed run uploads to the same MLflow run, and does not upload repeated steps twice.
    RunFolder.from_config(config).metrics_file.write_text("")
    append_steps(config, 1, 15)
    resumed = TrackedRun(config, warnings.append)
    resumed.start()
    wait_until(lambda: len(uploaded_steps(config, tracked.id)) == 15)
    assert resumed.finish("FINISHED")
    assert resumed.id == tracked.id
    assert uploaded_steps(config, resumed.id) == list(range(1, 16))


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_raises_immediately(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")

    class DenyingHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status, "You are not authenticated")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), DenyingHandler) as denying_server:
        threading.Thread(target=denying_server.serve_forever, daemon=True).start()
        config = make_config(registry={"uri": f"http://127.0.0.1:{denying_server.server_port}"})
        start = time.monotonic()
        expected = rf"denies access .*error code {status}.*MLFLOW_TRACKING_USERNAME"
        with pytest.raises(InputError, match=expected) as error:
            TrackedRun(config, pytest.fail).start()
        denying_server.shutdown()
    assert time.monotonic() - start < 10
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_locked_database_only_delays_the_upload(make_config: Callable[..., Config]) -> None:
    config, warnings = make_config(), []
    append_steps(config, 1, 10)
    tracked = TrackedRun(config, warnings.append)
    tracked.start()
    wait_until(lambda: tracked.id is not None and len(uploaded_steps(config, tracked.id)) == 10)
    lock = sqlite3.connect(tracking_uri(config).removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    append_steps(config, 11, 20)
    time.sleep(1)
    start = time.monotonic()
    assert not tracked.finish("FINISHED")
    assert time.monotonic() - start < FINISH_SECONDS + 2
    assert "tracking is incomplete" in warnings[-1]
    lock.execute("ROLLBACK")
    assert finish_pending_upload(config, warnings.append) == tracked.id
    assert uploaded_steps(config, tracked.id) == list(range(1, 21))


def test_credentials_are_redacted_from_uris() -> None:
    assert redact_credentials("http://anna:secret@host:5000/x") == "http://host:5000/x"
    assert redact_credentials("s3://bucket/key@2") == "s3://bucket/key@2"


def test_run_without_pending_upload_needs_no_server(make_config: Callable[..., Config]) -> None:
    config = make_config(registry={"uri": "http://127.0.0.1:9"})
    assert finish_pending_upload(config, pytest.fail) is None
    assert not RunFolder.from_config(config).path.exists()


def test_record_of_an_earlier_version_is_read(make_config: Callable[..., Config]) -> None:
    config = make_config()
    record = {"run_id": "1", "token": "a", "ending": "KILLED", "began": 1.0, "ended": 2.0, "is_complete": False}
    atomic_write_json(RunFolder.from_config(config).path / RECORD_FILE, record)
    assert load_tracking_record(config) == TrackingRecord(
        run_id="1", run_key="a", final_status="KILLED", started_at=1.0, ended_at=2.0, is_uploaded=False
    )


def test_storage_may_have_any_name(make_config: Callable[..., Config], tmp_path: Path) -> None:
    storage = tmp_path / "My Runs #1 (50%25) a%20b?c=d é"
    config = make_config(run={"storage": storage})
    assert make_url(tracking_uri(config)).database == str(storage / "mlflow.db")
    assert local_file_uri_to_path(local_artifacts(config)) == str(storage / "mlartifacts")
    # An ordinary path stays one, as in the experiments of earlier versions.
    plain = make_config(run={"storage": "/data/runs"})
    assert (tracking_uri(plain), local_artifacts(plain)) == (
        "sqlite:////data/runs/mlflow.db",
        "/data/runs/mlartifacts",
    )
