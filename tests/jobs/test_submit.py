"""Jobs submitted with `ray job submit` to a cluster that requires a token."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri
from tests.token_cluster import BIN, fetch_status_code

ROOT = Path(__file__).parents[2]


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
