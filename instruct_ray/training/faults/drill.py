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

from instruct_ray import base, run
from instruct_ray.config import Config, TrainConfig
from instruct_ray.data import prepare
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.feed import stream
from instruct_ray.data.packing import Pack
from instruct_ray.data.plan import Plan
from instruct_ray.training.checkpointing.checkpoints import find_signed
from instruct_ray.training.job import TrainJob, job_of
from instruct_ray.training.loop import work
from instruct_ray.training.rehearsal import scratch, short_plan, take_proof
from instruct_ray.training.trainer import Loop, fit

CHECKPOINT_EVERY = 3
# Steps done at the kill: two behind the first checkpoint.
KILL_AT = 5
# For the first checkpoint to be committed: a model of many GB takes a while.
COMMIT_SECONDS = 600.0
POLL_SECONDS = 0.05
# In the folder of the run with the kill: there until it is made; then when it was.
ARMED, KILLED = "armed", "killed"


@dataclass(frozen=True)
class Drilled:
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


def drill(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Drilled:
    """Train a few steps of a run's packs twice, in a folder beside the run's that is removed after. The run itself is
    not touched.

    Raises:
        InputError: the packs are not prepared, or the base can't be trained on them.
        RuntimeError: training failed otherwise than by the kill.
    """
    dataset = prepare.find(config)
    model = base.resolve(config)
    plan = short_plan(config, dataset)
    train = config.train.model_copy(update=_for_a_drill(config.train))
    config = config.model_copy(update={"train": train})
    with scratch(config, "drill") as folder:
        whole, killed = (run.RunFolder(folder.path / name) for name in ("whole", "killed"))
        jobs = [job_of(config, dataset, model, each, plan) for each in (whole, killed)]
        start_ray()
        for each, known, job in zip((whole, killed), (run.RunFolder.of(config), whole), jobs, strict=True):
            each.path.mkdir(parents=True)
            take_proof(known.path, each.path)
            if each is killed:
                (each.path / ARMED).touch()
            status(f"{plan.num_steps} steps, {'with a worker killed' if each is killed else 'undisturbed'}")
            if ending := fit(train, each, job, loop=recorded(each.path)):
                raise RuntimeError(f"training stopped: {ending}")
        return _judged(whole.path, killed.path, jobs[0].weights, jobs[1].weights, dataset, plan)


def recorded(folder: Path) -> Loop:
    """The loop of every worker, which notes the rows of each step as they are taken, and dies once where it is armed
    to."""

    def loop(config: dict[str, Any]) -> str:
        return work(TrainJob.model_validate(config["job"]), read, config["score"])

    def read(packs: Path, plan: Plan, start: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
        attempt = uuid.uuid4().hex
        for step, mine in enumerate(stream(packs, plan, start, rank, world_size), start):
            if step == KILL_AT and rank == world_size - 1:
                _die_if_armed(folder)
            rows = [row_id for pack in mine for row_id in pack["row_ids"]]
            record = {"step": step, "rank": rank, "attempt": attempt, "rows": rows, "time": time.time()}
            with (folder / f"rows-{rank}.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            yield mine

    return loop


def _for_a_drill(train: TrainConfig) -> dict[str, Any]:
    # As many workers after as before: the weights are to be equal.
    return {"checkpoint_every": CHECKPOINT_EVERY, "num_checkpoints": 2, "max_failures": 1} | (
        {"num_workers": train.max_workers} if train.is_elastic else {}
    )


def _die_if_armed(folder: Path) -> None:
    """Behind a checkpoint that is committed: steps are to be lost, not all of them."""
    if not (folder / ARMED).exists():
        return
    deadline = time.monotonic() + COMMIT_SECONDS
    while not find_signed(run.RunFolder(folder).train) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    (folder / ARMED).unlink()
    run.write_json(folder / KILLED, time.time())
    os.kill(os.getpid(), signal.SIGKILL)


def _judged(whole: Path, killed: Path, expected: Path, found: Path, dataset: PackedDataset, plan: Plan) -> Drilled:
    planned = {
        step: sorted(row for pack in dataset.take(plan.packs(step)) for row in pack["row_ids"])
        for step in range(plan.num_steps)
    }
    records = _records(killed)
    when = json.loads((killed / KILLED).read_text())
    # Each rank of each attempt has a mark of its own.
    first = [each for each in records if each["rank"] == 0]
    after = [each["time"] for each in first if each["attempt"] == first[-1]["attempt"]]
    return Drilled(
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
