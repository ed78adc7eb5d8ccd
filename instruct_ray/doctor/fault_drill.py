"""A user's own run, drilled: a few of its steps twice, once with a worker killed. Same rows, same weights?"""

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from instruct_ray.config.schema import Config
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.open_run import open_run
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.stream import stream_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.doctor.trial_run import copy_packing_check, temporary_run, trial_plan
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.checkpoint.manifest import find_committed
from instruct_ray.training.driver.build_spec import build_worker_spec
from instruct_ray.training.driver.launch import TrainLoop, run_ray_train
from instruct_ray.training.worker.loop import run_worker
from instruct_ray.training.worker.outcome import Ending, TrainOutcome
from instruct_ray.training.worker.spec import WorkerSpec

CHECKPOINT_EVERY = 3
# Steps done at the kill: two behind the first checkpoint.
KILL_AT = 5
# For the first checkpoint to be committed: a model of many GB takes a while.
COMMIT_SECONDS = 600.0
POLL_SECONDS = 0.05
# In the folder of the run with the kill: there until it is made; then when it was.
ARMED, KILLED = "armed", "killed"


@dataclass(frozen=True)
class DrillReport:
    """What became of a run whose worker was killed."""

    num_steps: int
    num_rows: int
    """Rows of all its steps."""
    num_wasted: int
    """Steps that were done again."""
    seconds: float
    """From the kill to the end of the next step."""
    has_same_rows: bool
    """Whether every step trained on the rows that the plan names, in both runs."""
    largest_difference: float
    """Between the weights of both runs; 0 if they are equal to the bit."""

    @property
    def passed(self) -> bool:
        return self.has_same_rows and self.largest_difference == 0


def run_fault_drill(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> DrillReport:
    """Train a few steps of a run twice, once with a worker killed, and compare rows and weights. This happens in a
    folder beside the run's that is removed afterwards; the run itself is not touched.

    Raises:
        InputError: the packs are not prepared, or the base model can't be trained on them.
        RuntimeError: training failed for another reason than the kill.
    """
    run = open_run(config, "tune")
    plan = trial_plan(config, run.packs)
    config = config.model_copy(update={"train": config.train.model_copy(update=_drill_options(config.train))})
    with temporary_run(run.folder, "drill") as folder:
        undisturbed, killed = RunFolder(folder.path / "undisturbed"), RunFolder(folder.path / "killed")
        specs = [build_worker_spec(run, config, copy, plan) for copy in (undisturbed, killed)]
        start_ray()
        status(f"{plan.num_steps} steps, undisturbed")
        _train_copy(config.train, undisturbed, specs[0], checked_by=run.folder)
        killed.path.mkdir(parents=True)
        (killed.path / ARMED).touch()
        status(f"{plan.num_steps} steps, with a worker killed")
        _train_copy(config.train, killed, specs[1], checked_by=undisturbed)
        return _compare_runs(undisturbed.path, killed.path, specs[0].weights_dir, specs[1].weights_dir, run.packs, plan)


def _train_copy(train: TrainConfig, folder: RunFolder, spec: WorkerSpec, checked_by: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    copy_packing_check(checked_by.path, folder.path)
    outcome = run_ray_train(train, folder, spec, loop=recording_loop(folder.path))
    if outcome.ending is not Ending.FINISHED:
        raise RuntimeError(f"training stopped: {outcome.reason}")


def recording_loop(folder: Path) -> TrainLoop:
    """The loop of every worker, which notes the rows of each step as they are taken, and dies once where it is armed
    to."""

    def loop(config: dict[str, Any]) -> TrainOutcome:
        return run_worker(WorkerSpec.model_validate(config["worker_spec"]), read, config["eval_fn"])

    def read(packs: Path, plan: BatchPlan, start: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
        attempt = uuid.uuid4().hex
        for step, mine in enumerate(stream_packs(packs, plan, start, rank, world_size), start):
            if step == KILL_AT and rank == world_size - 1:
                _kill_self_once(folder)
            rows = [row_id for pack in mine for row_id in pack["row_ids"]]
            record = {"step": step, "rank": rank, "attempt": attempt, "rows": rows, "time": time.time()}
            with (folder / f"rows-{rank}.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            yield mine

    return loop


def _drill_options(train: TrainConfig) -> dict[str, Any]:
    # As many workers after as before: the weights are to be equal.
    return {"checkpoint_every": CHECKPOINT_EVERY, "num_checkpoints": 2, "max_failures": 1} | (
        {"num_workers": train.max_workers} if train.is_elastic else {}
    )


def _kill_self_once(folder: Path) -> None:
    """Behind a checkpoint that is committed: steps are to be lost, not all of them."""
    if not (folder / ARMED).exists():
        return
    deadline = time.monotonic() + COMMIT_SECONDS
    while not find_committed(RunFolder(folder).ray_train_dir) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    (folder / ARMED).unlink()
    atomic_write_json(folder / KILLED, time.time())
    os.kill(os.getpid(), signal.SIGKILL)


def _compare_runs(
    whole: Path, killed: Path, expected: Path, found: Path, dataset: PackedDataset, plan: BatchPlan
) -> DrillReport:
    planned = {
        step: sorted(row for pack in dataset.take(plan.step_packs(step)) for row in pack["row_ids"])
        for step in range(plan.num_steps)
    }
    records = _records(killed)
    when = json.loads((killed / KILLED).read_text())
    # Each rank of each attempt has a mark of its own.
    first = [each for each in records if each["rank"] == 0]
    after = [each["time"] for each in first if each["attempt"] == first[-1]["attempt"]]
    return DrillReport(
        num_steps=plan.num_steps,
        num_rows=sum(map(len, planned.values())),
        num_wasted=len(first) - plan.num_steps,
        # A step is over when the next one's packs are taken.
        seconds=after[1] - when,
        has_same_rows=_rows(_records(whole)) == planned and _rows(records) == planned,
        largest_difference=_difference(expected, found),
    )


def _records(folder: Path) -> list[dict[str, Any]]:
    """Steps as ranks took their packs, in order of time."""
    lines = [line for path in folder.glob("rows-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda each: float(each["time"]))


def _rows(records: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Step -> the rows that all ranks took for it, the last time."""
    last = {(each["step"], each["rank"]): each["rows"] for each in records}
    steps = {step for step, _ in last}
    return {step: sorted(row for (s, _), rows in last.items() if s == step for row in rows) for step in sorted(steps)}


def _difference(expected: Path, found: Path) -> float:
    """The largest between two folders of weights; infinity if they don't hold the same ones."""
    one, other = _weights(expected), _weights(found)
    if one.keys() != other.keys() or not one:
        return float("inf")
    if all(torch.equal(one[name], other[name]) for name in one):
        return 0.0
    # Not 0: what is no number differs too.
    return max(float((one[name].double() - other[name].double()).abs().nan_to_num(float("inf")).max()) for name in one)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
