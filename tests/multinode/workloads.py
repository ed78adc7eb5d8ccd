"""What runs on the clusters of these tests: a tiny model, its rows and its config on the shared volume, and MLflow."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests import tiny
from tests.multinode.kuberay import RayCluster
from tests.multinode.mlflow_deployment import CREDENTIALS
from tests.multinode.pods import Namespace, Pod

SHARED_CLAIM = "instruct-ray-shared"
MOUNT = "/mnt/shared"
CONFIG_FILE = f"{MOUNT}/tiny.yaml"
# One worker per node of three CPUs, which leaves one for data tasks. 6 steps per epoch.
TRAIN = {
    "epochs": 8,
    "examples_per_step": 12,
    "learning_rate": 1e-3,
    "num_workers": 2,
    "cpus_per_worker": 2,
    "zero_stage": 3,
    "checkpoint_every": 8,
    "max_failures": 3,
    "wait_for_nodes": 120,
    # Of these CPUs, some have no instructions for bf16.
    "precision": "fp32",
}
STEPS_PER_EPOCH = 6


def write_inputs(shared: Path) -> None:
    """Write the base model, the rows and the config to the shared volume."""
    tiny.save_base(shared / "base", tiny.make_tokenizer())
    tiny.write_triples(shared / "triples.jsonl")
    config: dict[str, Any] = {
        "run": {"name": "tiny", "storage": f"{MOUNT}/runs"},
        "model": {"base": f"{MOUNT}/base"},
        "data": {
            "sources": [f"{MOUNT}/triples.jsonl"],
            "test_fraction": 0.25,
            "pack_tokens": 128,
            "max_tokens": 128,
            "near_duplicates": None,
        },
        "train": TRAIN,
        "evidence": {"max_new_tokens": 4, "num_latency_rows": 2, "num_engines": 1},
        "registry": {"name": "tiny", "gate": None},
    }
    (shared / "tiny.yaml").write_text(yaml.safe_dump(config))
    (shared / "runs").mkdir()
    open_to_all(shared)


def job_command(stage: str, name: str, *overrides: str) -> str:
    """The command of a stage, as in the comments of the manifests."""
    parts = [
        "python",
        "-m",
        f"jobs.{stage}",
        "--config",
        CONFIG_FILE,
        f"run.name={name}",
        "registry.uri=http://mlflow:5000",
    ]
    return " ".join([*parts, *overrides])


def run_in_pod(namespace: Namespace, name: str, command: str) -> None:
    """Run a command in a pod of its own, with Ray on that pod only."""
    spec = {
        "containers": [{"name": name, "volumeMounts": [{"name": "shared", "mountPath": MOUNT}]}],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": SHARED_CLAIM}}],
    }
    pod = Pod(namespace, name, spec, RAY_AUTH_MODE="disabled", **namespace.secrets[CREDENTIALS])
    pod.start(command.split())
    assert pod.host.wait(timeout=180) == 0, pod.host.log
    pod.remove()


def copy_run(shared: Path, source: str, name: str) -> None:
    """Copy a prepared run under another name."""
    folder = shared / "runs" / name
    shutil.copytree(shared / "runs" / source, folder)
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    config["run"]["name"] = name
    config_file.write_text(json.dumps(config))
    open_to_all(folder)


def open_to_all(folder: Path) -> None:
    """Let the user of the pods, who is not the one of the tests, write to a folder."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)


def metrics_file(shared: Path, name: str) -> Path:
    """The metrics of a run, as this machine sees them."""
    return shared / "runs" / name / "metrics.jsonl"


def nodes_of_training_workers(cluster: RayCluster) -> list[Pod]:
    """The pods that hold a training worker."""
    return [pod for pod in cluster.workers if pod.runs("RayTrainWorker")]


def kill_training_worker(cluster: RayCluster) -> None:
    """Kill the process of a training worker."""
    processes = nodes_of_training_workers(cluster)[-1].host.processes
    next(process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())).kill()
