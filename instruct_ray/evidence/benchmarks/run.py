"""driver: `instruct-ray benchmark`: base and tuned model answer benchmarks of general skill, each in a Ray task.

Killed anywhere and run again, it asks no model for a benchmark that it has answered.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from instruct_ray.config.evidence import BenchmarksConfig
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.errors import InputError
from instruct_ray.evidence.asking.journal import Journal, make_key
from instruct_ray.evidence.benchmarks.comparison import BenchmarkAnswers, compare_answers
from instruct_ray.evidence.benchmarks.file import (
    BENCHMARK_ANSWERS_FILE,
    BenchmarksFile,
    benchmarks_file,
    load_benchmarks,
)
from instruct_ray.evidence.benchmarks.harness import APPLY_CHAT_TEMPLATE, ask_model, check_tasks, lm_eval_version
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.inference.loading import check_loadable, model_digest
from instruct_ray.run.folder import CONTRACT_FILE
from instruct_ray.run.lock import run_lock
from instruct_ray.runtime_env import worker_runtime_env

JOURNAL_FILE = "benchmark_journal.jsonl"
BASE, TUNED = "base", "tuned"
MAX_RUNNING = 2


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks of a run."""

    content: BenchmarksFile
    already_done: bool


@dataclass(frozen=True)
class _Job:
    """A benchmark that one of the two models answers."""

    benchmark: str
    model: str
    """`base` or `tuned`."""
    model_dir: Path
    key: str
    """Digest of all that decides the answers."""


def run_benchmarks(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Benchmarks:
    """Run the benchmarks of `evidence.benchmarks` on base and tuned model, and write `benchmarks.json`.

    What is there for the same models and settings is kept.

    Args:
        config: the config of the run.
        status: called with progress messages.
        start_ray: called if answers are missing.

    Raises:
        InputError: the run is not tuned yet, its config has changed, lm-eval is not installed or can't load a
            benchmark, or another process is working on the run.
    """
    check_tasks(config.evidence.benchmarks.tasks)
    run = open_run(config, "evaluate")
    model_dir, path = run.folder.model_dir, benchmarks_file(run.folder)
    if not (model_dir / CONTRACT_FILE).is_file():
        raise InputError(f"{model_dir}: no tuned model; run `instruct-ray tune` with this config first")
    with run_lock(run.folder.path) as lock:
        status("hashing the models")
        described = _describe(run)
        found = load_benchmarks(path)
        if found is not None and found.model_dump(include=set(described)) == described:
            return Benchmarks(found, already_done=True)
        with Journal(path.with_name(JOURNAL_FILE)) as journal:
            jobs = _plan(run, described)
            if missing := [job for job in jobs if job.key not in journal]:
                for job in missing:
                    check_loadable(job.model_dir)
                start_ray()
                for job, answers in _ask(missing, config.evidence.benchmarks, config.serving, status):
                    lock.check()
                    journal.add([(job.key, answers.dump())])
            by_benchmark = _by_benchmark(jobs, journal)
            figures = {name: compare_answers(of[BASE], of[TUNED]) for name, of in by_benchmark.items()}
            content = BenchmarksFile.model_validate({**described, "benchmarks": figures})
            lock.check()
            atomic_write_text(path.with_name(BENCHMARK_ANSWERS_FILE), "".join(_answer_lines(by_benchmark)))
            # Last, since the benchmarks are finished when it exists.
            atomic_write_json(path, {**described, "benchmarks": figures})
            journal.remove()
    return Benchmarks(content, already_done=False)


def _describe(run: OpenRun) -> dict[str, Any]:
    """What decides the figures: the models and the settings."""
    settings = run.config.evidence.benchmarks
    return {
        "model_digest": model_digest(run.folder.model_dir),
        "base_digest": run.base_model.digest,
        "settings": {
            "tasks": list(settings.tasks),
            "limit": settings.limit,
            "apply_chat_template": APPLY_CHAT_TEMPLATE,
            "lm_eval": lm_eval_version(),
        },
    }


def _plan(run: OpenRun, described: Mapping[str, Any]) -> list[_Job]:
    folders = {
        BASE: (run.base_model.initial_model_dir, described["base_digest"]),
        TUNED: (run.folder.model_dir, described["model_digest"]),
    }
    settings = {name: value for name, value in described["settings"].items() if name != "tasks"}
    return [
        _Job(benchmark, model, folder, make_key(model, digest, benchmark, settings))
        for benchmark in described["settings"]["tasks"]
        for model, (folder, digest) in folders.items()
    ]


def _ask(
    jobs: list[_Job], settings: BenchmarksConfig, serving: ServingConfig, status: Callable[[str], None]
) -> Iterator[tuple[_Job, BenchmarkAnswers]]:
    """Let the models answer, at most two at a time, since each holds the memory of a model; yields each answer.

    Raises:
        InputError: a benchmark can't be used.
    """
    task = ray.remote(
        num_cpus=serving.num_cpus,
        num_gpus=serving.num_gpus,
        label_selector=serving.label_selector,
        # Its process ends with it, and so frees the memory of the model.
        max_calls=1,
        runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
    )(ask_model)
    waiting, running, num_done = list(jobs), dict[Any, _Job](), 0
    while waiting or running:
        while waiting and len(running) < MAX_RUNNING:
            job = waiting.pop(0)
            running[task.remote(job.model_dir, job.benchmark, settings)] = job
        names = " and ".join(f"{job.model} model: {job.benchmark}" for job in running.values())
        status(f"{num_done} of {len(jobs)} done; asking {names}")
        [finished], _ = ray.wait(list(running), num_returns=1)
        try:
            answers = ray.get(finished)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise
        num_done += 1
        yield running.pop(finished), answers


def _by_benchmark(jobs: list[_Job], journal: Journal) -> dict[str, dict[str, BenchmarkAnswers]]:
    """The answers of both models, by benchmark."""
    found: dict[str, dict[str, BenchmarkAnswers]] = {}
    for job in jobs:
        found.setdefault(job.benchmark, {})[job.model] = BenchmarkAnswers(**journal[job.key])
    return found


def _answer_lines(by_benchmark: Mapping[str, Mapping[str, BenchmarkAnswers]]) -> Iterator[str]:
    """One line a question: whether each model was right."""
    for name, of in by_benchmark.items():
        for question, is_right in of[BASE].correct.items():
            values = {"benchmark": name, "question": question, BASE: is_right, TUNED: of[TUNED].correct[question]}
            yield json.dumps(values) + "\n"
