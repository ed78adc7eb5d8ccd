"""The driver with the controller, or the head of the cluster, killed and started again."""

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
from tests.drill.harness import CaseResult, DrillHarness
from tests.ports import find_free_ports

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def kill_driver_and_controller(harness: DrillHarness) -> CaseResult:
    """`kill -9` of the driver and all its descendants; the same command resumes, in the same MLflow run."""
    uninterrupted = harness.train_uninterrupted()
    config = harness.prepare_run("driver")
    with harness.monitor(config) as monitor:
        process = harness.start_job("tune", config, **build_environment())
        driver = psutil.Process(process.pid)
        monitor.cause_at(15, lambda: kill_with_descendants(driver))
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        rerun(harness, config, **build_environment())
    assert_one_mlflow_run(config)
    return harness.compare(config, uninterrupted, monitor)


def kill_head(harness: DrillHarness) -> CaseResult:
    """The head node and the state of the cluster are lost; the run resumes on a new cluster with the same storage."""
    uninterrupted = harness.train_uninterrupted()
    config = harness.prepare_run("head")
    with harness.monitor(config) as monitor:
        head, environment = start_head()
        process = harness.start_job("tune", config, **environment)
        monitor.cause_at(15, lambda: kill_with_descendants(head))
        output, _ = process.communicate(timeout=240)
        assert process.returncode not in (0, 2), output
        new_head, environment = start_head()
        try:
            rerun(harness, config, **environment)
        finally:
            kill_with_descendants(new_head)
    assert_one_mlflow_run(config)
    return harness.compare(config, uninterrupted, monitor)


def build_environment(**variables: str) -> dict[str, str]:
    """The environment for a command of this project."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", **variables}


def rerun(harness: DrillHarness, config: Config, **environment: str) -> None:
    """Run the same command again, to the end."""
    process = harness.start_job("tune", config, **environment)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def start_head() -> tuple[psutil.Process, dict[str, str]]:
    """Start a head node; returns its process and the environment to connect to it."""
    [port] = find_free_ports(1)
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}"]
    command += ["--include-dashboard=false", f"--temp-dir={os.environ['RAY_TMPDIR']}/head-{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = psutil.Process(subprocess.Popen(command, env=build_environment(), **quiet).pid)
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, "the head did not start"
        time.sleep(0.2)
    # The port is open before the node is ready.
    time.sleep(5)
    return head, build_environment(RAY_ADDRESS=f"127.0.0.1:{port}")


def kill_with_descendants(parent: psutil.Process) -> None:
    for process in [parent, *parent.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def assert_one_mlflow_run(config: Config) -> None:
    client = mlflow.MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.registry.name)
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == config.run.name]
    run_id = json.loads((RunFolder.from_config(config).path / "mlflow.json").read_text())["run_id"]
    assert [(run.info.run_id, run.info.status) for run in runs] == [(run_id, "FINISHED")]
