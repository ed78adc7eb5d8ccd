"""A training stopped by a signal saves a checkpoint, and the resumed training ends with the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri

DATA = {"test_fraction": 0.25, "pack_tokens": 128, "max_tokens": 128, "near_duplicates": None}
TRAIN = {
    "epochs": 40,
    "examples_per_step": 12,
    "checkpoint_every": 10**6,
    "num_workers": 1,
    "zero_stage": 1,
    "learning_rate": 1e-3,
}


def start_job(job: str, config: Config, folder: Path) -> subprocess.Popen[str]:
    path = folder / f"{config.run.name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", f"jobs.{job}", "--config", str(path)]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # Tests that run in the background of a shell inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run_job(job: str, config: Config, folder: Path) -> None:
    process = start_job(job, config, folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def count_steps(config: Config) -> int:
    path = RunFolder.from_config(config).metrics_file
    return len(path.read_text().splitlines()) if path.exists() else 0


def read_losses(config: Config) -> list[float]:
    return [json.loads(line)["loss"] for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


def load_weights(config: Config) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.from_config(config).model_dir / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, triples_file: Path) -> Config:
    """The same run without a stop."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    values = {
        "run": {"name": "uninterrupted", "storage": folder},
        "model": {"base": str(base_folder)},
        "data": DATA | {"sources": [triples_file]},
        "train": TRAIN,
        "registry": {"name": "tiny"},
    }
    config = Config.model_validate(values)
    for job in ("prepare", "tune"):
        run_job(job, config, folder)
    return config


# `ray job stop` sends SIGTERM too, in test_submit, which runs more often.
@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_loses_no_step(
    make_config: Callable[..., Config], uninterrupted: Config, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    stopped = make_config(run={"name": "stopped"}, data=DATA, train=TRAIN)
    run_job("prepare", stopped, tmp_path)
    process = start_job("tune", stopped, tmp_path)
    deadline = time.monotonic() + 120
    while count_steps(stopped) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == exit_code, output
    assert "rerun the same command to resume" in output
    folder = RunFolder.from_config(stopped)
    checkpoints = [path.name[:18] for path in folder.ray_train_dir.glob("checkpoint-*")]
    assert checkpoints == [f"checkpoint-{count_steps(stopped):07d}"]
    assert not folder.model_dir.exists()
    run_id = json.loads((folder.path / "mlflow.json").read_text())["run_id"]
    client = mlflow.MlflowClient(tracking_uri(stopped))
    assert client.get_run(run_id).info.status == "KILLED"

    run_job("tune", stopped, tmp_path)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert read_losses(stopped) == read_losses(uninterrupted)
    weights = load_weights(stopped)
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_weights(uninterrupted).items())
    assert not (folder.path / ".stop").exists()
    assert not (folder.path / ".lock").exists()
