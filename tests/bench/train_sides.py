"""Runs the sides of the training benchmark in their own processes: ours by its jobs, peers in their environment."""

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
from tests.bench.examples import bench_config, make_examples, make_renderer, resolve_base
from tests.bench.machine import CORES, environment, run_python
from tests.bench.peers import Peer, Settings
from tests.bench.rows import Row, line_offsets, write_jsonl

BATCH = 8
# Number of first steps that are not timed, on every side.
WARM_UP = 1
LEARNING_RATE = 1e-5
# Ray starts its workers with this niceness; peers get the same.
NICE = 15


@dataclass(frozen=True)
class Task:
    """A data set to train on: the rows that our packs contain."""

    name: str
    work: Path
    base: Path
    examples: list[Example]
    packs: list[Pack]
    num_steps: int
    use_gpu: bool

    @property
    def row_tokens(self) -> int:
        return sum(example.num_tokens for example in self.examples)


@dataclass(frozen=True)
class Timing:
    """Speed and losses of one side in one round, after the warm-up."""

    tokens_per_second: float
    computed_per_second: float
    losses: list[float]
    seconds: list[float]


def make_task(name: str, rows: Sequence[Row], work: Path, options: argparse.Namespace) -> Task:
    """Prepare the rows once, and find the rows that the packs contain."""
    write_jsonl(rows, work / f"{name}.jsonl")
    config = _configure(name, "rows", work, options)
    shutil.rmtree(work / config.run.name, ignore_errors=True)
    _run_job("prepare", config, work, options)
    dataset = find_packs(RunFolder.from_config(config))
    packs = dataset.take(range(dataset.num_packs))
    base_model = resolve_base(work, options.base)
    # A row id is the index of the source and the byte offset of the line.
    rows_by_id = {f"0:{offset}": row for offset, row in zip(line_offsets(work / f"{name}.jsonl"), rows, strict=True)}
    packed_rows = [rows_by_id[row_id] for pack in packs for row_id in pack["row_ids"]]
    examples = make_examples(make_renderer(base_model), packed_rows)
    if sum(example.num_tokens for example in examples) != sum(pack["num_tokens"] for pack in packs):
        raise AssertionError("the packs don't match the rows of their row ids")
    num_steps = build_plan(config, dataset).num_steps
    return Task(name, work, base_model.folder, examples, packs, num_steps, use_gpu=options.gpu)


def run_ours(task: Task, round_: str, options: argparse.Namespace) -> Timing:
    """Prepare and tune as a user would; the times are from metrics.jsonl."""
    config = _configure(task.name, round_, task.work, options)
    folder = task.work / config.run.name
    shutil.rmtree(folder, ignore_errors=True)
    _run_job("prepare", config, task.work, options)
    _run_job("tune", config, task.work, options)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    _check_steps("ours", len(lines), task)
    return _make_timing(lines, [line["loss"] for line in lines])


def run_peer(task: Task, round_: str, python: Path, peer: Peer, settings: Settings) -> Timing:
    """Train a peer on the same rows in the same number of steps."""
    # An estimate for packed rows.
    num_rows = -(-task.row_tokens // settings["max_length"]) if settings.get("packing") else len(task.examples)
    # Equal batches, at most as large as configured, in as many steps as our side.
    max_batch = settings.get("per_device_train_batch_size", BATCH)
    accumulation = -(-num_rows // (task.num_steps * max_batch))
    settings = settings | {"per_device_train_batch_size": -(-num_rows // (task.num_steps * accumulation))}
    request = {"kind": "train", "settings": settings, "accumulation": accumulation}
    result = request_peer(task, round_, python, peer, request)
    if not settings.get("packing"):
        _check_steps(peer.name, len(result["seconds"]), task)
    lines = []
    for step, seconds in enumerate(result["seconds"]):
        counts = result["counts"][step * accumulation : (step + 1) * accumulation]
        num_tokens, num_computed = (sum(count[column] for count in counts) for column in (0, 1))
        lines.append({"seconds": seconds, "num_tokens": num_tokens, "num_computed_tokens": num_computed})
    return _make_timing(lines, result["losses"])


def request_peer(task: Task, name: str, python: Path, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    """Run `peer.py` with a request for a task's rows; returns its result."""
    name = f"{task.name}-{name}-{peer.trainer}"
    job_file, result_file = task.work / f"{name}-job.json", task.work / f"{name}-result.json"
    rows = [as_row(example) for example in request.pop("examples", task.examples)]
    common = {"threads": CORES, "base": str(task.base), "folder": str(task.work / peer.trainer), "rows": rows}
    common |= {"trainer": peer.trainer, "learning_rate": LEARNING_RATE, "use_gpu": task.use_gpu}
    job_file.write_text(json.dumps(common | request))
    args = [str(Path(__file__).with_name("peer.py")), str(job_file), str(result_file)]
    run_python(python, args, environment(), task.work / "logs" / f"{name}.log", nice=NICE)
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


def as_row(example: Example) -> dict[str, list[int]]:
    """Convert an example to a tokenized row for a peer, whose model shifts the labels itself."""
    prompt, completion = [int(i) for i in example.prompt_ids], [int(i) for i in example.completion_ids]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _configure(name: str, round_: str, work: Path, options: argparse.Namespace) -> Config:
    values = bench_config(
        work,
        f"{name}-{round_}",
        work / f"{name}.jsonl",
        options.base,
        # All sides get the same rows: those that are not held out.
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
            "use_gpu": options.gpu,
            "checkpoint_every": 10**6,
        },
    )
    (work / f"{name}-{round_}.yaml").write_text(yaml.safe_dump(values))
    return Config.model_validate(values)


def _run_job(job: str, config: Config, work: Path, options: argparse.Namespace) -> None:
    env = environment(max(1, CORES // options.workers))
    args = ["-m", f"jobs.{job}", "--config", str(work / f"{config.run.name}.yaml")]
    run_python(sys.executable, args, env, work / "logs" / f"{config.run.name}-{job}.log")


def _check_steps(side: str, num_steps: int, task: Task) -> None:
    if num_steps != task.num_steps:
        raise AssertionError(f"{side} took {num_steps} steps on {task.name}; expected {task.num_steps}")


def _make_timing(lines: Sequence[dict[str, Any]], losses: list[float]) -> Timing:
    timed_lines = lines[WARM_UP:]
    seconds = sum(line["seconds"] for line in timed_lines)
    return Timing(
        sum(line["num_tokens"] for line in timed_lines) / seconds,
        sum(line["num_computed_tokens"] for line in timed_lines) / seconds,
        losses,
        [line["seconds"] for line in lines],
    )
