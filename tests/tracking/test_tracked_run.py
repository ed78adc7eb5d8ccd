"""Tracking through outages: a server that hangs, dies and comes back, a locked database, a refusal."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking import tracked_run
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.tracked_run import START_SECONDS, TrackedRun, finish_pending_upload, load_tracking_record
from instruct_ray.tracking.uploader import redact_credentials
from tests.mlflow_server import MlflowServer

# Waits are cut short here; what they bound stays the same.
FINISH_SECONDS = 3.0
REQUEST_SECONDS = 2


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_run, "FINISH_SECONDS", FINISH_SECONDS)
    monkeypatch.setattr(tracked_run, "REQUEST_SECONDS", REQUEST_SECONDS)
    monkeypatch.setattr(tracked_run, "MAX_RETRY_SECONDS", 1.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def append(config: Config, first: int, last: int, node: int | None = None) -> None:
    """Steps as a worker writes them."""
    folder = RunFolder.from_config(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.metrics_file if node is None else folder.path / f"system-{node}.jsonl"
    values = {"loss": 2.5, "lr": 1e-3} if node is None else {"cpu_utilization_percentage": 50.0}
    with path.open("a") as file:
        for step in range(first, last + 1):
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def steps(config: Config, run_id: str | None, key: str = "loss") -> list[int]:
    assert run_id is not None
    client = mlflow.MlflowClient(tracking_uri(config))
    return [point.step for point in client.get_metric_history(run_id, key)]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_hangs_and_dies_only_delays(make_config: Callable[..., Config], server: MlflowServer) -> None:
    config, said = make_config(registry={"uri": server.uri}), []
    tracked = TrackedRun(config, said.append)
    tracked.start()
    append(config, 1, 100)
    append(config, 0, 3, node=0)
    wait_until(lambda: len(steps(config, tracked.id)) == 100)
    assert said == []

    server.pause()
    append(config, 101, 200)
    wait_until(lambda: len(said) == 1)
    assert "training goes on" in said[0]
    server.resume()
    wait_until(lambda: len(steps(config, tracked.id)) == 200)
    wait_until(lambda: said[1:] == [f"tracking: {server.uri} answers again"])

    server.kill()
    append(config, 201, 300)
    wait_until(lambda: len(said) == 3)
    server.start()
    wait_until(lambda: len(said) == 4)
    assert tracked.finish("FINISHED")
    assert steps(config, tracked.id) == list(range(1, 301))
    assert steps(config, tracked.id, "lr") == list(range(1, 301))
    assert steps(config, tracked.id, "system/node_0/cpu_utilization_percentage") == [0, 1, 2, 3]
    found = mlflow.MlflowClient(server.uri).get_run(tracked.id)
    assert (found.info.status, found.data.params["train.learning_rate"]) == ("FINISHED", "0.001")


def test_a_server_that_never_comes_back_costs_seconds_and_can_be_caught_up(
    make_config: Callable[..., Config], server: MlflowServer
) -> None:
    config, said = make_config(registry={"uri": server.uri}), []
    tracked = TrackedRun(config, said.append)
    tracked.start()
    append(config, 1, 10)
    wait_until(lambda: len(steps(config, tracked.id)) == 10)
    server.pause()
    append(config, 11, 20)
    began = time.monotonic()
    assert not tracked.finish("FINISHED")
    assert time.monotonic() - began < FINISH_SECONDS + 2
    assert "tracking is incomplete" in said[-1]
    assert "`instruct-ray tune` with the same config completes it" in said[-1]
    assert not load_tracking_record(config).is_complete

    server.resume()
    assert finish_pending_upload(config, said.append) == tracked.id
    assert load_tracking_record(config).is_complete
    assert steps(config, tracked.id) == list(range(1, 21))
    assert mlflow.MlflowClient(server.uri).get_run(tracked.id).info.status == "FINISHED"


def test_a_server_that_is_not_there_at_the_start(make_config: Callable[..., Config], server: MlflowServer) -> None:
    config, said = make_config(registry={"uri": server.uri}), []
    server.kill()
    tracked = TrackedRun(config, said.append)
    began = time.monotonic()
    tracked.start()
    assert time.monotonic() - began < START_SECONDS
    assert "training goes on, its metrics wait" in said[0]
    assert tracked.id is None
    append(config, 1, 10)
    server.start()
    wait_until(lambda: tracked.id is not None)
    assert tracked.finish("KILLED")
    assert steps(config, tracked.id) == list(range(1, 11))

    # The next start continues the run, and steps that are done again are not sent again.
    RunFolder.from_config(config).metrics_file.write_text("")
    append(config, 1, 15)
    again = TrackedRun(config, said.append)
    again.start()
    wait_until(lambda: len(steps(config, tracked.id)) == 15)
    assert again.finish("FINISHED")
    assert again.id == tracked.id
    assert steps(config, again.id) == list(range(1, 16))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_said_at_once(make_config: Callable[..., Config], status: int) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status, "You are not authenticated")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        config = make_config(registry={"uri": f"http://anna:secret@127.0.0.1:{refusing.server_port}"})
        began = time.monotonic()
        with pytest.raises(InputError, match=rf"refuses .*error code {status}.*MLFLOW_TRACKING_USERNAME") as error:
            TrackedRun(config, pytest.fail).start()
        refusing.shutdown()
    assert time.monotonic() - began < 10
    assert "secret" not in str(error.value)


def test_a_locked_database_only_delays(make_config: Callable[..., Config]) -> None:
    config, said = make_config(), []
    append(config, 1, 10)
    tracked = TrackedRun(config, said.append)
    tracked.start()
    wait_until(lambda: tracked.id is not None and len(steps(config, tracked.id)) == 10)
    lock = sqlite3.connect(tracking_uri(config).removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    append(config, 11, 20)
    time.sleep(1)
    began = time.monotonic()
    assert not tracked.finish("FINISHED")
    assert time.monotonic() - began < FINISH_SECONDS + 2
    assert "tracking is incomplete" in said[-1]
    lock.execute("ROLLBACK")
    assert finish_pending_upload(config, said.append) == tracked.id
    assert steps(config, tracked.id) == list(range(1, 21))


def test_a_password_in_a_uri_is_kept_out_of_parameters() -> None:
    assert redact_credentials("http://anna:secret@host:5000/x") == "http://host:5000/x"
    assert redact_credentials("s3://bucket/key@2") == "s3://bucket/key@2"


def test_a_complete_run_needs_no_server(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(registry={"uri": "http://127.0.0.1:9"})
    assert finish_pending_upload(config, pytest.fail) is None
    assert not RunFolder.from_config(config).path.exists()
