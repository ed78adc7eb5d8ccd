"""The program that a user started, its controller and the head of the cluster: killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri
from tests.drill.lab import Figures, Lab

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def driver_and_controller_killed(lab: Lab) -> Figures:
    """`kill -9` of the program and of everything under it; the same command continues, in the same MLflow run."""
    whole = lab.whole()
    config = lab.start("driver")
    with lab.watch(config) as watch:
        process = lab.job("tune", config, **environment())
        tree = psutil.Process(process.pid)
        watch.at(15, lambda: kill_tree(tree))
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        finish(lab, config, **environment())
    assert_one_mlflow_run(config)
    return lab.compared(config, whole, watch)


def head_killed(lab: Lab) -> Figures:
    """The head node with the state of the cluster is gone: a new cluster and the same storage continue."""
    whole = lab.whole()
    config = lab.start("head")
    with lab.watch(config) as watch:
        head, env = start_head(lab)
        process = lab.job("tune", config, **env)
        watch.at(15, lambda: kill_tree(head))
        output, _ = process.communicate(timeout=240)
        assert process.returncode not in (0, 2), output
        head, env = start_head(lab)
        try:
            finish(lab, config, **env)
        finally:
            kill_tree(head)
    assert_one_mlflow_run(config)
    return lab.compared(config, whole, watch)


def environment(**more: str) -> dict[str, str]:
    """A shell of this project."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", **more}


def finish(lab: Lab, config: Config, **env: str) -> None:
    """The same command again."""
    process = lab.job("tune", config, **env)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def start_head(lab: Lab) -> tuple[psutil.Process, dict[str, str]]:
    """A head node in processes of its own, and the environment to reach it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}"]
    command += ["--include-dashboard=false", f"--temp-dir={os.environ['RAY_TMPDIR']}/head-{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = psutil.Process(subprocess.Popen(command, env=environment(), **quiet).pid)
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, "the head did not come up"
        time.sleep(0.2)
    # The node itself comes up behind the port.
    time.sleep(5)
    return head, environment(RAY_ADDRESS=f"127.0.0.1:{port}")


def kill_tree(process: psutil.Process) -> None:
    """A process and all that it started, children first seen."""
    for each in [process, *process.children(recursive=True)]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def assert_one_mlflow_run(config: Config) -> None:
    client = mlflow.MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.registry.name)
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == config.run.name]
    known = json.loads((RunFolder.from_config(config).path / "mlflow.json").read_text())["run_id"]
    assert [(run.info.run_id, run.info.status) for run in found] == [(known, "FINISHED")]
