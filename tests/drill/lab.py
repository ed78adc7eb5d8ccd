"""Where drills are done: the tiny model, its packs, uninterrupted runs to compare with, and the clusters."""

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
from instruct_ray.training.driver.build_spec import build_plan
from instruct_ray.training.driver.tune import tune
from tests import tiny
from tests.drill import faults
from tests.drill.watch import Watch, lines_of

# 48 steps, 6 an epoch.
TRAIN = {
    "epochs": 8,
    "examples_per_step": 12,
    "learning_rate": 1e-3,
    "num_workers": 2,
    "zero_stage": 2,
    "checkpoint_every": 8,
    "max_failures": 3,
}
# Everything that the uninterrupted run passed can be continued from.
EVERY_STEP = {"checkpoint_every": 1, "num_checkpoints": 1000}
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@dataclass
class Figures:
    """What a drill found."""

    planned: int = 0
    executed: int = 0
    seconds_to_next_step: list[float] = field(default_factory=list)
    is_bitwise: bool | None = None
    """Whether weights and the loss of every step equal those of an uninterrupted run."""
    goodput: float | None = None
    """Seconds of the uninterrupted run over seconds of this one."""
    says: str = ""

    @property
    def wasted(self) -> int:
        """Steps done more often than planned."""
        return self.executed - self.planned


class Lab:
    """A folder for drills, and this process's connection to Ray."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        self.log: list[str] = []
        """What the runs said they were doing."""
        self.cluster: Cluster | None = None

    def arm(self, *points: str) -> None:
        """Arm faults; see tests.drill.faults."""
        for point in points:
            (self.faults / point).touch()

    def disarm(self, point: str) -> None:
        (self.faults / point).unlink()

    @property
    def armed(self) -> list[str]:
        """Faults that have not come about."""
        return sorted(path.name for path in self.faults.iterdir())

    def config(self, name: str, **train: Any) -> Config:
        """A run of the tiny model."""
        return Config.model_validate(
            {
                "run": {"name": name, "storage": self.folder / "runs"},
                "model": {"base": str(self._base)},
                "data": {
                    "sources": [self._triples],
                    "test_fraction": 0.25,
                    "pack_tokens": 128,
                    "max_tokens": 128,
                    "near_duplicates": None,
                },
                "train": TRAIN | train,
                "registry": {"name": "tiny"},
            }
        )

    def start(self, name: str, **train: Any) -> Config:
        """A run that is prepared."""
        config = self.config(name, **train)
        shutil.copytree(self._packs.path, RunFolder.from_config(config).path)
        self._rename(config)
        return config

    def run(self, config: Config) -> None:
        """Train it to its end."""
        tune(config, self.log.append, lambda: None)

    def watch(self, config: Config) -> Watch:
        return Watch(RunFolder.from_config(config).metrics_file)

    def figures(self, config: Config, watch: Watch) -> Figures:
        """What a watched run that has ended says about itself."""
        return Figures(
            planned=build_plan(config, find_packs(RunFolder.from_config(config))).num_steps,
            executed=watch.executed,
            seconds_to_next_step=watch.seconds_to_next_step,
        )

    def compared(self, config: Config, whole: Config, watch: Watch) -> Figures:
        """The figures of a run, and whether it is the uninterrupted one to the bit."""
        found = self.figures(config, watch)
        found.is_bitwise = self.same(config, whole)
        return found

    def whole(self, **train: Any) -> Config:
        """An uninterrupted run with these settings, done once, with a checkpoint of every step."""
        name = "whole-" + "-".join(f"{key}{value}" for key, value in sorted(train.items())).replace("_", "")
        config = self.config(name, **EVERY_STEP | train)
        if not RunFolder.from_config(config).model_dir.exists():
            self.run(self.start(name, **EVERY_STEP | train))
        return config

    def copy(self, config: Config, name: str, last_step: int, **train: Any) -> Config:
        """A run that has come so far in the same way: with the checkpoints of another up to a step."""
        copied = self.config(name, **EVERY_STEP | train)
        folder = RunFolder.from_config(copied)
        ignored = shutil.ignore_patterns("model", "mlflow.json", "evidence", "checkpoint_manager_snapshot.json")
        shutil.copytree(RunFolder.from_config(config).path, folder.path, ignore=ignored)
        self._rename(copied)
        for path in folder.ray_train_dir.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > last_step:
                shutil.rmtree(path)
        lines = folder.metrics_file.read_text().splitlines(keepends=True)
        folder.metrics_file.write_text("".join(lines[:last_step]))
        return copied

    def same(self, config: Config, whole: Config) -> bool:
        """Whether two runs took the same way to the same bits."""
        expected, found = self.weights(whole), self.weights(config)
        losses = [
            [line["loss"] for line in lines_of(RunFolder.from_config(each).metrics_file)] for each in (whole, config)
        ]
        is_equal = expected.keys() == found.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
        return is_equal and losses[0] == losses[1]

    def weights(self, config: Config) -> dict[str, torch.Tensor]:
        return load_file(RunFolder.from_config(config).model_dir / "model.safetensors")

    def job(self, name: str, config: Config, **env: str) -> subprocess.Popen[str]:
        """A job of the run in a process of its own."""
        path = self.folder / f"{config.run.name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        command = [sys.executable, "-m", f"jobs.{name}", "--config", str(path)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @contextmanager
    def ray(self) -> Iterator[None]:
        """A local cluster whose worker processes meet the armed faults."""
        with self._joined(num_cpus=4, include_dashboard=False):
            yield

    @contextmanager
    def nodes(self, count: int) -> Iterator[Cluster]:
        """A head with one CPU, for data tasks, and nodes with two, each with room for one worker of two."""
        head = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(count):
                cluster.add_node(**NODE)
            with self._joined(address=cluster.address):
                yield cluster
        finally:
            cluster.shutdown()

    @contextmanager
    def _joined(self, **options: Any) -> Iterator[None]:
        ray.init(**options, runtime_env=faults.runtime_env(self.faults), log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        # Ray takes the signal over when it starts.
        exit_on_sigterm()
        try:
            yield
        finally:
            ray.shutdown()

    @cached_property
    def _base(self) -> Path:
        return tiny.save_base(self.folder / "base", tiny.make_tokenizer())

    @cached_property
    def _triples(self) -> Path:
        return tiny.write_triples(self.folder / "triples.jsonl")

    @cached_property
    def _packs(self) -> RunFolder:
        """A run that is prepared and never trained: others begin as its copies."""
        config = self.config("prepared")
        prepare(config, lambda: None)
        return RunFolder.from_config(config)

    @staticmethod
    def _rename(config: Config) -> None:
        """A copied run is pinned to the name it was copied from."""
        record = RunFolder.from_config(config).path / "config.json"
        pinned = json.loads(record.read_text())
        pinned["run"]["name"] = config.run.name
        record.write_text(json.dumps(pinned))
