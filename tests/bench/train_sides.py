"""The sides of the training benchmark, each in a process of its own: ours by its jobs, peers in their environment."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from instruct_ray.config.schema import Config
from instruct_ray.data.example import Example
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.build_spec import build_plan
from tests.bench.examples import bench_config, examples_of, renderer_of, resolve_base
from tests.bench.machine import CORES, environment, run_python
from tests.bench.peers import Peer, Settings
from tests.bench.rows import Row, line_starts, write_jsonl

BATCH = 8
# Steps not timed, on every side: libraries are warming up.
WARM_UP = 1
LEARNING_RATE = 1e-5
# Ray gives its workers this niceness; the peers get the same.
NICE = 15


@dataclass(frozen=True)
class Task:
    """One data set to train on: the rows that our packs hold."""

    name: str
    work: Path
    base: Path
    examples: list[Example]
    packs: list[Pack]
    num_steps: int

    @property
    def row_tokens(self) -> int:
        return sum(example.num_tokens for example in self.examples)


@dataclass(frozen=True)
class Timed:
    """What one side did in one round, the warm-up left out."""

    tokens_per_second: float
    computed_per_second: float
    losses: list[float]
    seconds: list[float]


def make_task(name: str, rows: Sequence[Row], work: Path, options: argparse.Namespace) -> Task:
    """Prepare the rows once with the project's own job, and see which of them its packs hold."""
    write_jsonl(rows, work / f"{name}.jsonl")
    config = _configure(name, "rows", work, options)
    shutil.rmtree(work / config.run.name, ignore_errors=True)
    _job("prepare", config, work, options)
    dataset = find_packs(RunFolder.from_config(config))
    packs = dataset.take(range(dataset.num_packs))
    base_model = resolve_base(work)
    # A row's id is its source's number and where its line begins, in bytes.
    by_id = {f"0:{start}": row for start, row in zip(line_starts(work / f"{name}.jsonl"), rows, strict=True)}
    packed = [by_id[row_id] for pack in packs for row_id in pack["row_ids"]]
    examples = examples_of(renderer_of(base_model), packed)
    if sum(example.num_tokens for example in examples) != sum(pack["num_tokens"] for pack in packs):
        raise AssertionError("the rows of the packs are not those found by their row ids")
    return Task(name, work, base_model.folder, examples, packs, build_plan(config, dataset).num_steps)


def run_ours(task: Task, round_: str, options: argparse.Namespace) -> Timed:
    """Prepare and tune as a user would; the times are those of metrics.jsonl."""
    config = _configure(task.name, round_, task.work, options)
    folder = task.work / config.run.name
    shutil.rmtree(folder, ignore_errors=True)
    _job("prepare", config, task.work, options)
    _job("tune", config, task.work, options)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    _check_steps("ours", len(lines), task)
    return _timed(lines, [line["loss"] for line in lines])


def run_peer(task: Task, round_: str, python: Path, peer: Peer, settings: Settings) -> Timed:
    """A peer on the same rows in as many steps."""
    # What is packed becomes about so many rows.
    num_rows = -(-task.row_tokens // settings["max_length"]) if settings.get("packing") else len(task.examples)
    # In as many steps as ours takes: batches no larger than asked for, all alike.
    largest = settings.get("per_device_train_batch_size", BATCH)
    accumulation = -(-num_rows // (task.num_steps * largest))
    settings = settings | {"per_device_train_batch_size": -(-num_rows // (task.num_steps * accumulation))}
    request = {"kind": "train", "settings": settings, "accumulation": accumulation}
    answer = ask_peer(task, round_, python, peer, request)
    if not settings.get("packing"):
        _check_steps(peer.name, len(answer["seconds"]), task)
    lines = []
    for step, seconds in enumerate(answer["seconds"]):
        counts = answer["counts"][step * accumulation : (step + 1) * accumulation]
        num_tokens, num_computed = (sum(count[column] for count in counts) for column in (0, 1))
        lines.append({"seconds": seconds, "num_tokens": num_tokens, "num_computed_tokens": num_computed})
    return _timed(lines, answer["losses"])


def ask_peer(task: Task, name: str, python: Path, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    """Run `peer.py` with a request about a task's rows; returns its answer."""
    name = f"{task.name}-{name}-{peer.trainer}"
    given, answer = task.work / f"{name}-job.json", task.work / f"{name}-answer.json"
    rows = [as_row(example) for example in request.pop("examples", task.examples)]
    common = {"threads": CORES, "base": str(task.base), "folder": str(task.work / peer.trainer), "rows": rows}
    common |= {"trainer": peer.trainer, "learning_rate": LEARNING_RATE}
    given.write_text(json.dumps(common | request))
    args = [str(Path(__file__).with_name("peer.py")), str(given), str(answer)]
    run_python(python, args, environment(), task.work / "logs" / f"{name}.log", nice=NICE)
    result: dict[str, Any] = json.loads(answer.read_text())
    return result


def as_row(example: Example) -> dict[str, list[int]]:
    """An example as peers take tokenised rows; the model shifts the labels itself."""
    prompt, completion = [int(i) for i in example.prompt_ids], [int(i) for i in example.completion_ids]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _configure(name: str, round_: str, work: Path, options: argparse.Namespace) -> Config:
    values = bench_config(
        work,
        f"{name}-{round_}",
        work / f"{name}.jsonl",
        # Both sides get the same rows: those that are not held out.
        data={
            "test_fraction": 0.05,
            "near_duplicates": None,
            "pack_tokens": options.pack_tokens,
            "max_tokens": options.pack_tokens,
        },
        train={
            "examples_per_step": options.examples_per_step[name],
            "learning_rate": LEARNING_RATE,
            "num_workers": options.workers,
            "cpus_per_worker": max(1, CORES // options.workers),
            "zero_stage": options.zero_stage,
            "checkpoint_every": 10**6,
        },
    )
    (work / f"{name}-{round_}.yaml").write_text(yaml.safe_dump(values))
    return Config.model_validate(values)


def _job(job: str, config: Config, work: Path, options: argparse.Namespace) -> None:
    env = environment(max(1, CORES // options.workers))
    args = ["-m", f"jobs.{job}", "--config", str(work / f"{config.run.name}.yaml")]
    run_python(sys.executable, args, env, work / "logs" / f"{config.run.name}-{job}.log")


def _check_steps(side: str, num_steps: int, task: Task) -> None:
    if num_steps != task.num_steps:
        raise AssertionError(f"{side} took {num_steps} steps on {task.name}, not {task.num_steps}")


def _timed(lines: Sequence[dict[str, Any]], losses: list[float]) -> Timed:
    timed = lines[WARM_UP:]
    seconds = sum(line["seconds"] for line in timed)
    return Timed(
        sum(line["num_tokens"] for line in timed) / seconds,
        sum(line["num_computed_tokens"] for line in timed) / seconds,
        losses,
        [line["seconds"] for line in lines],
    )
