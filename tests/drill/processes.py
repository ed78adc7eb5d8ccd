"""The program that a user started, its controller and the head of the cluster: killed and started again."""

import json
import signal

import mlflow
import psutil

from instruct_ray.config import Config
from instruct_ray.run import RunFolder
from instruct_ray.tracking.client import tracking_uri
from tests.drill.lab import Figures, Lab
from tests.head import environment, kill_tree, start_head


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
        head, env = start_head()
        process = lab.job("tune", config, **env)
        watch.at(15, lambda: kill_tree(head))
        output, _ = process.communicate(timeout=240)
        assert process.returncode not in (0, 2), output
        head, env = start_head()
        try:
            finish(lab, config, **env)
        finally:
            kill_tree(head)
    assert_one_mlflow_run(config)
    return lab.compared(config, whole, watch)


def finish(lab: Lab, config: Config, **env: str) -> None:
    """The same command again."""
    process = lab.job("tune", config, **env)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def assert_one_mlflow_run(config: Config) -> None:
    client = mlflow.MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.registry.name)
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == config.run.name]
    known = json.loads((RunFolder.of(config).path / "mlflow.json").read_text())["run_id"]
    assert [(run.info.run_id, run.info.status) for run in found] == [(known, "FINISHED")]
