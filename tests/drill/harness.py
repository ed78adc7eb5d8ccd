"""The harness of the drill cases: tiny runs, uninterrupted runs to compare with, armed faults, and Ray clusters."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch
import yaml
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.errors import exit_on_sigterm
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.checkpoint.recovery import RECORD_FILE
from instruct_ray.training.driver.build_spec import build_plan
from instruct_ray.training.driver.tune import tune
from tests import tiny
from tests.drill import fault_points
from tests.drill.monitor import RunMonitor, read_metrics

# 48 steps, 6 per epoch.
TRAIN = {
    "epochs": 8,
    "examples_per_step": 12,
    "learning_rate": 1e-3,
    "num_workers": 2,
    "zero_stage": 2,
    "checkpoint_every": 8,
    "max_failures": 3,
}
# Lets other runs resume from any step of an uninterrupted run.
EVERY_STEP = {"checkpoint_every": 1, "num_checkpoints": 1000}
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@dataclass
class CaseResult:
    """The measurements of a drill case."""

    num_planned: int = 0
    """Steps of the plan."""
    num_executed: int = 0
    """Steps that were executed, where a redone step counts again."""
    seconds_to_next_step: list[float] = field(default_factory=list)
    """Of each fault: the time until the next step."""
    seconds_to_first_step: float = 0.0
    """The time from the start of the run until its first step."""
    is_bitwise_equal: bool | None = None
    """Whether the weights and the losses of all steps equal those of an uninterrupted run; None if not compared."""
    goodput: float | None = None
    """Seconds that the steps of the plan need without faults, over the seconds of the run."""
    note: str = ""
    skipped: str = ""
    """Why the case could not be run here; empty if it was."""

    @property
    def num_redone(self) -> int:
        """Steps that were executed again."""
        return self.num_executed - self.num_planned


class DrillHarness:
    """A folder for the runs of drill cases, and the connection of this process to Ray."""

    def __init__(self, folder: Path, soak_minutes: float = 30.0) -> None:
        self.folder, self.soak_minutes = folder, soak_minutes
        self.storage = folder / "runs"
        """`run.storage` of new configs."""
        self.faults_dir = folder / "faults"
        self.faults_dir.mkdir(parents=True)
        self.status_messages: list[str] = []
        """What the status lines of the runs showed."""

    def arm_faults(self, *points: str) -> None:
        """Arm faults; see tests.drill.fault_points."""
        for point in points:
            (self.faults_dir / point).touch()

    def disarm_fault(self, point: str) -> None:
        (self.faults_dir / point).unlink()

    @property
    def armed_faults(self) -> list[str]:
        """Faults that have not fired yet."""
        return sorted(path.name for path in self.faults_dir.iterdir())

    def build_config(self, name: str, **train: Any) -> Config:
        """The config of a run of the tiny model."""
        return Config.model_validate(
            {
                "run": {"name": name, "storage": self.storage},
                "model": {"base": str(self._base_dir)},
                "data": {
                    "sources": [self._triples_file],
                    "test_fraction": 0.25,
                    "pack_tokens": 128,
                    "max_tokens": 128,
                    "near_duplicates": None,
                },
                "train": TRAIN | train,
                "registry": {"name": "tiny"},
            }
        )

    def prepare_run(self, name: str, **train: Any) -> Config:
        """A new run with prepared packs."""
        config = self.build_config(name, **train)
        shutil.copytree(self._prepared.path, RunFolder.from_config(config).path)
        self._rename_frozen_run(config)
        return config

    def remove_run(self, name: str) -> None:
        shutil.rmtree(self.storage / name)

    def train(self, config: Config) -> None:
        """Train a run to the end in this process."""
        tune(config, self.status_messages.append, lambda: None)

    def start_job(self, name: str, config: Config, **env: str) -> subprocess.Popen[str]:
        """Start a job of a run in its own process."""
        path = self.folder / f"{config.run.name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        command = [sys.executable, "-m", f"jobs.{name}", "--config", str(path)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def monitor(self, config: Config) -> RunMonitor:
        return RunMonitor(RunFolder.from_config(config).metrics_file)

    def train_uninterrupted(self, **train: Any) -> Config:
        """An uninterrupted run with these settings and a checkpoint of every step. It is trained only once."""
        settings = "-".join(f"{key}{value}" for key, value in sorted(train.items())).replace("_", "")
        name = f"uninterrupted-{settings}"
        config = self.build_config(name, **EVERY_STEP | train)
        if not RunFolder.from_config(config).model_dir.exists():
            self.train(self.prepare_run(name, **EVERY_STEP | train))
        return config

    def copy_run(self, config: Config, name: str, last_step: int, **train: Any) -> Config:
        """Copy an uninterrupted run as if it had been killed after the checkpoint of a step."""
        copied = self.build_config(name, **EVERY_STEP | train)
        folder = RunFolder.from_config(copied)
        ignored = shutil.ignore_patterns("model", "mlflow.json", "evidence", RECORD_FILE)
        shutil.copytree(RunFolder.from_config(config).path, folder.path, ignore=ignored)
        self._rename_frozen_run(copied)
        for path in folder.ray_train_dir.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > last_step:
                shutil.rmtree(path)
        lines = folder.metrics_file.read_text().splitlines(keepends=True)
        folder.metrics_file.write_text("".join(lines[:last_step]))
        return copied

    def measure(self, config: Config, monitor: RunMonitor) -> CaseResult:
        """The measurements of a run that has ended."""
        return CaseResult(
            num_planned=build_plan(config, find_packs(RunFolder.from_config(config))).num_steps,
            num_executed=monitor.num_executed,
            seconds_to_next_step=monitor.seconds_to_next_step,
            seconds_to_first_step=monitor.seconds_to_first_step,
        )

    def compare(self, config: Config, uninterrupted: Config, monitor: RunMonitor) -> CaseResult:
        """The measurements of a run that has ended, and whether it equals an uninterrupted run."""
        result = self.measure(config, monitor)
        result.is_bitwise_equal = self.is_bitwise_equal(config, uninterrupted)
        return result

    def is_bitwise_equal(self, config: Config, uninterrupted: Config) -> bool:
        """Whether two runs have the same weights and the same loss at every step."""
        folder, expected_folder = RunFolder.from_config(config), RunFolder.from_config(uninterrupted)
        losses, expected_losses = (
            [step["loss"] for step in read_metrics(run.metrics_file)] for run in (folder, expected_folder)
        )
        weights, expected_weights = (
            load_file(run.model_dir / "model.safetensors") for run in (folder, expected_folder)
        )
        return (
            losses == expected_losses
            and weights.keys() == expected_weights.keys()
            and all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
        )

    @contextmanager
    def storage_on(self, disk: Path) -> Iterator[None]:
        """Put the runs that are configured inside the block on another disk."""
        storage, self.storage = self.storage, disk
        try:
            yield
        finally:
            self.storage = storage

    @contextmanager
    def local_cluster(self) -> Iterator[None]:
        """A local Ray cluster in whose worker processes armed faults fire."""
        with self._connected(num_cpus=4, include_dashboard=False):
            yield

    @contextmanager
    def node_cluster(self, num_nodes: int) -> Iterator[Cluster]:
        """A cluster of a head with one CPU, for data tasks, and nodes that each hold one worker of two CPUs."""
        head = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(num_nodes):
                cluster.add_node(**NODE)
            with self._connected(address=cluster.address):
                yield cluster
        finally:
            cluster.shutdown()

    @contextmanager
    def _connected(self, **options: Any) -> Iterator[None]:
        runtime_env = fault_points.build_runtime_env(self.faults_dir)
        ray.init(**options, runtime_env=runtime_env, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        # Ray installs its own handler when it starts.
        exit_on_sigterm()
        try:
            yield
        finally:
            ray.shutdown()

    @cached_property
    def _base_dir(self) -> Path:
        return tiny.save_base(self.folder / "base", tiny.make_tokenizer())

    @cached_property
    def _triples_file(self) -> Path:
        return tiny.write_triples(self.folder / "triples.jsonl")

    @cached_property
    def _prepared(self) -> RunFolder:
        """A run that is prepared and never trained; other runs start as copies of it."""
        config = self.build_config("prepared")
        prepare(config, lambda: None)
        return RunFolder.from_config(config)

    @staticmethod
    def _rename_frozen_run(config: Config) -> None:
        """Put the name of a copied run into its frozen config, which has the name of the original."""
        config_file = RunFolder.from_config(config).path / "config.json"
        frozen = json.loads(config_file.read_text())
        frozen["run"]["name"] = config.run.name
        config_file.write_text(json.dumps(frozen))
