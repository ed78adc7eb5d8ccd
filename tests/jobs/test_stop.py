"""Stopping a training by signal: a checkpoint at the step it was at, an honest MLflow run, and the same end."""

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


def start(job: str, config: Config, folder: Path) -> subprocess.Popen[str]:
    path = folder / f"{config.run.name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", f"jobs.{job}", "--config", str(path)]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(job: str, config: Config, folder: Path) -> None:
    process = start(job, config, folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def num_steps(config: Config) -> int:
    path = RunFolder.from_config(config).metrics_file
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, triples_file: Path) -> Config:
    """The same run, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    values = {
        "run": {"name": "whole", "storage": folder},
        "model": {"base": str(base_folder)},
        "data": DATA | {"sources": [triples_file]},
        "train": TRAIN,
        "registry": {"name": "tiny"},
    }
    config = Config.model_validate(values)
    for job in ("prepare", "tune"):
        run(job, config, folder)
    return config


@pytest.mark.faults
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_loses_no_step(
    make_config: Callable[..., Config], whole: Config, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    stopped = make_config(run={"name": "stopped"}, data=DATA, train=TRAIN)
    run("prepare", stopped, tmp_path)
    process = start("tune", stopped, tmp_path)
    deadline = time.monotonic() + 120
    while num_steps(stopped) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == exit_code, output
    assert "the same command continues" in output
    done = num_steps(stopped)
    folder = RunFolder.from_config(stopped)
    assert [path.name[:18] for path in folder.ray_train_dir.glob("checkpoint-*")] == [f"checkpoint-{done:07d}"]
    assert not folder.model_dir.exists()
    run_id = json.loads((folder.path / "mlflow.json").read_text())["run_id"]
    client = mlflow.MlflowClient(tracking_uri(stopped))
    assert client.get_run(run_id).info.status == "KILLED"

    run("tune", stopped, tmp_path)
    assert client.get_run(run_id).info.status == "FINISHED"
    losses = [
        [json.loads(line)["loss"] for line in RunFolder.from_config(c).metrics_file.open()] for c in (whole, stopped)
    ]
    assert losses[0] == losses[1]
    weights = [load_file(RunFolder.from_config(config).model_dir / "model.safetensors") for config in (whole, stopped)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    assert not (folder.path / ".stop").exists()
    assert not (folder.path / ".lease").exists()
