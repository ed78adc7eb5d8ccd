"""The same jobs by `ray job submit` against a running cluster that asks for a token."""

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A shell as a user of a cluster has it: the token, and this project's python first on the path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    """A head node of its own; yields the address that jobs are submitted to."""
    # Unix sockets live there: their paths must be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port = free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}"]
    command += [f"--port={free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    # Another cluster of this machine, such as the other tests', has the usual port of the agent that starts jobs.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while status_code(f"{address}/api/jobs/", TOKEN) != 200:
        assert head.poll() is None, "ray start failed"
        assert time.monotonic() < deadline, "the dashboard did not come up"
        time.sleep(0.5)
    yield address
    for process in psutil.Process(head.pid).children(recursive=True):
        process.kill()
    head.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def status_code(url: str, token: str | None) -> int:
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
    """Submit a job as README says and wait for its end."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config(model={"lora": {"rank": 4}}).model_dump(mode="json")))

    def run(job: str, *overrides: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", ROOT, *options, "--"]
        command += ["python", "-m", job, "--config", path, *overrides]
        # The dashboard answers before the agent that starts jobs does: on a busy machine seconds before.
        for _ in range(30):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            if "No available agent" not in done.stdout + done.stderr:
                break
            time.sleep(2)
        return done

    return run


def test_a_job_succeeds(
    submit: Callable[..., subprocess.CompletedProcess[str]], make_config: Callable[..., Config]
) -> None:
    done = submit("jobs.prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert list(RunFolder.from_config(make_config()).packs.glob("*/manifest.json"))


def test_a_failing_config_shows_why_in_its_last_line(submit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = submit("jobs.tune", "train.epoch=3")
    assert done.returncode == 1
    assert "failed" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith("unknown key train.epoch; did you mean epochs?")


@pytest.mark.faults
def test_ray_job_stop_commits_a_checkpoint(
    submit: Callable[..., subprocess.CompletedProcess[str]],
    make_config: Callable[..., Config],
    dashboard: str,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """F6: within the grace that RAY_JOB_STOP_WAIT_TIME_S gives; Ray's default is 3 s."""
    folder = RunFolder.from_config(make_config())
    assert submit("jobs.prepare").returncode == 0
    long = ("train.epochs=60", "train.checkpoint_every=1000000")

    def stop() -> None:
        while not folder.metrics_file.exists() or folder.metrics_file.read_bytes().count(b"\n") < 5:
            time.sleep(0.05)
        command = [BIN / "ray", "job", "stop", "--address", dashboard, "to-be-stopped"]
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    done = submit("jobs.tune", *long, options=("--submission-id=to-be-stopped", f"--runtime-env-json={grace}"))
    stopper.join(timeout=1)
    assert not stopper.is_alive()
    assert "was stopped" in done.stdout, done.stdout + done.stderr
    num_steps = folder.metrics_file.read_bytes().count(b"\n")
    assert [path.name[:18] for path in folder.ray_train_dir.glob("checkpoint-*")] == [f"checkpoint-{num_steps:07d}"]
    assert not folder.model_dir.exists()
    run_id = json.loads((folder.path / "mlflow.json").read_text())["run_id"]
    client = mlflow.MlflowClient(tracking_uri(make_config()))
    assert client.get_run(run_id).info.status == "KILLED"

    assert submit("jobs.tune", *long).returncode == 0
    assert client.get_run(run_id).info.status == "FINISHED"
    steps = [json.loads(line)["step"] for line in folder.metrics_file.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert (folder.model_dir / "adapter_model.safetensors").is_file()


def test_without_the_token_nothing_is_accepted(dashboard: str) -> None:
    assert status_code(f"{dashboard}/api/jobs/", None) in (401, 403)
    assert status_code(f"{dashboard}/api/jobs/", "wrong") in (401, 403)
