"""Jobs submitted with `ray job submit` to a cluster that requires a token."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "a-token-for-tests-only-0123456789"


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The environment of a cluster user: the token, and the project's Python first on the path."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return inherited | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    """Starts a head node; yields the address that jobs are submitted to."""
    # Ray puts Unix sockets there, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port = find_free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}"]
    command += [f"--port={find_free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    # The default port may be taken by another cluster on this machine, such as that of other tests.
    command += [f"--dashboard-agent-listen-port={find_free_port()}"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while fetch_status_code(f"{address}/api/jobs/", TOKEN) != 200:
        assert head.poll() is None, "ray start failed"
        assert time.monotonic() < deadline, "the dashboard did not come up"
        time.sleep(0.5)
    yield address
    for process in psutil.Process(head.pid).children(recursive=True):
        process.kill()
    head.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def fetch_status_code(url: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def submit(
    dashboard: str, environment: dict[str, str], make_config: Callable[..., Config], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Submits a job with the command of the README and waits for its end."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config(model={"lora": {"rank": 4}}).model_dump(mode="json")))

    def run(job: str, *overrides: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", ROOT, *options, "--"]
        command += ["python", "-m", job, "--config", path, *overrides]
        # The dashboard is available seconds before the agent that starts jobs.
        for _ in range(30):
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            if "No available agent" not in result.stdout + result.stderr:
                break
            time.sleep(2)
        return result

    return run


def test_prepare_job_succeeds(
    submit: Callable[..., subprocess.CompletedProcess[str]], make_config: Callable[..., Config]
) -> None:
    result = submit("jobs.prepare")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    assert list(RunFolder.from_config(make_config()).packs_dir.glob("*/manifest.json"))


def test_last_line_of_a_failed_job_is_its_error(submit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = submit("jobs.tune", "train.epoch=3")
    assert result.returncode == 1
    assert "failed" in result.stdout
    assert result.stdout.strip().splitlines()[-1].endswith("unknown key train.epoch; did you mean epochs?")


@pytest.mark.faults
def test_ray_job_stop_commits_a_checkpoint(
    submit: Callable[..., subprocess.CompletedProcess[str]],
    make_config: Callable[..., Config],
    dashboard: str,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The checkpoint is saved within RAY_JOB_STOP_WAIT_TIME_S; Ray's default is 3 s."""
    folder = RunFolder.from_config(make_config())
    assert submit("jobs.prepare").returncode == 0
    overrides = ("train.epochs=60", "train.checkpoint_every=1000000")

    def stop_job() -> None:
        while not folder.metrics_file.exists() or folder.metrics_file.read_bytes().count(b"\n") < 5:
            time.sleep(0.05)
        command = [BIN / "ray", "job", "stop", "--address", dashboard, "to-be-stopped"]
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)

    stopper = threading.Thread(target=stop_job, daemon=True)
    stopper.start()
    runtime_env = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ("--submission-id=to-be-stopped", f"--runtime-env-json={runtime_env}")
    result = submit("jobs.tune", *overrides, options=options)
    stopper.join(timeout=1)
    assert not stopper.is_alive()
    assert "was stopped" in result.stdout, result.stdout + result.stderr
    num_steps = folder.metrics_file.read_bytes().count(b"\n")
    assert [path.name[:18] for path in folder.ray_train_dir.glob("checkpoint-*")] == [f"checkpoint-{num_steps:07d}"]
    assert not folder.model_dir.exists()
    run_id = json.loads((folder.path / "mlflow.json").read_text())["run_id"]
    client = mlflow.MlflowClient(tracking_uri(make_config()))
    assert client.get_run(run_id).info.status == "KILLED"

    assert submit("jobs.tune", *overrides).returncode == 0
    assert client.get_run(run_id).info.status == "FINISHED"
    steps = [json.loads(line)["step"] for line in folder.metrics_file.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert (folder.model_dir / "adapter_model.safetensors").is_file()


def test_requests_without_the_token_are_refused(dashboard: str) -> None:
    assert fetch_status_code(f"{dashboard}/api/jobs/", None) in (401, 403)
    assert fetch_status_code(f"{dashboard}/api/jobs/", "wrong") in (401, 403)
