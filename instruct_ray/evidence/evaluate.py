"""The evaluate stage: every arm answers the held-out rows, with the engine that serves -> evidence."""

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.prepare.source_changes import check_sources_unchanged
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.arms import Arm, choose_few_shot_examples, make_arms
from instruct_ray.evidence.metrics import contains_expected, fraction, is_exact
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.inference.engine import Completion, SamplingParams
from instruct_ray.inference.engine_actor import start_engine_actor
from instruct_ray.run.folder import CONTRACT_FILE, RunFolder

# Prompts per call of the engine actor: a few batches, so that progress is shown between calls.
PROMPTS_PER_CALL = 32


@dataclass(frozen=True)
class Evidence:
    """The content of `evidence.json`."""

    values: dict[str, Any]
    already_done: bool


@dataclass(frozen=True)
class _ArmResult:
    """The result of one arm."""

    metrics: dict[str, float]
    answers: list[str]
    """One answer per held-out row."""


def load_evidence(config: Config) -> dict[str, Any]:
    """Load the evidence of a run.

    Raises:
        InputError: the run has no evidence yet.
    """
    path = RunFolder.from_config(config).evidence_file
    if not path.is_file():
        raise InputError(f"{path}: no evidence; run `instruct-ray evaluate` with this config first")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def evaluate(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Evidence:
    """Answer the held-out rows with every arm and write `evidence.json` and `answers.jsonl`.

    Args:
        config: the config of the run.
        status: called with progress messages.
        start_ray: called once the run is known to be ready for evaluation.

    Raises:
        InputError: the run is not tuned yet, or its config or its sources have changed.
    """
    run = open_run(config, "evaluate")
    folder = run.folder
    if not (folder.model_dir / CONTRACT_FILE).is_file():
        raise InputError(f"{folder.model_dir}: no tuned model; run `instruct-ray tune` with this config first")
    if folder.evidence_file.is_file():
        return Evidence(load_evidence(config), already_done=True)
    check_sources_unchanged(run)
    renderer = load_renderer(folder.model_dir)
    rows = [Triple.load(json.loads(line)) for line in folder.test_rows_file.read_text().split("\n") if line]
    initial_model_dir = run.base_model.initial_model_dir
    arms = make_arms(renderer, initial_model_dir, folder.model_dir, rows, choose_few_shot_examples(run))
    start_ray()
    results: dict[str, _ArmResult] = {}
    for model_dir, model_arms in itertools.groupby(arms, key=lambda arm: arm.model_dir):
        status("loading the model")
        engine = start_engine_actor(model_dir, renderer.contract, config.serving)
        results |= {arm.name: _run_arm(arm, engine, renderer, rows, config, status) for arm in model_arms}
        ray.kill(engine)
    run.freeze()
    return _write_evidence(run, renderer.contract.digest, rows, results)


def _run_arm(
    arm: Arm, engine: Any, renderer: Renderer, rows: Sequence[Triple], config: Config, status: Callable[[str], None]
) -> _ArmResult:
    answers = [
        renderer.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        for completion in _generate(arm, engine, config, status)
    ]
    exact = [is_exact(answer, row.output) for answer, row in zip(answers, rows, strict=True)]
    contained = [contains_expected(answer, row.output) for answer, row in zip(answers, rows, strict=True)]
    metrics = {
        "accuracy": fraction(exact),
        "label_found": fraction(contained),
        "prompt_tokens": statistics.fmean(len(prompt) for prompt in arm.prompts),
        "latency_p50_seconds": _measure_latency(arm, engine, config, status),
    }
    return _ArmResult(metrics, answers)


def _generate(arm: Arm, engine: Any, config: Config, status: Callable[[str], None]) -> list[Completion]:
    """Generate the completions of all prompts of an arm, in order."""
    sampling = SamplingParams(config.evidence.max_new_tokens)
    # Prompts of similar length share a batch, which needs less padding.
    order = sorted(range(len(arm.prompts)), key=lambda index: len(arm.prompts[index]))
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), PROMPTS_PER_CALL):
        indices = order[start : start + PROMPTS_PER_CALL]
        results, _ = ray.get(engine.generate.remote([arm.prompts[index] for index in indices], sampling))
        completions |= dict(zip(indices, results, strict=True))
        status(f"{arm.name}: {len(completions)}/{len(order)} rows")
    return [completions[index] for index in range(len(order))]


def _measure_latency(arm: Arm, engine: Any, config: Config, status: Callable[[str], None]) -> float:
    """Measure the median latency of single requests, in seconds."""
    sampling, num_requests = SamplingParams(config.evidence.max_new_tokens), config.evidence.num_latency_rows
    latencies: list[float] = []
    for prompt in arm.prompts[:num_requests]:
        _, seconds = ray.get(engine.generate.remote([prompt], sampling))
        latencies.append(seconds)
        status(f"{arm.name}: latency, {len(latencies)} of {num_requests} requests")
    return statistics.median(latencies)


def _write_evidence(
    run: OpenRun, contract_digest: str, rows: Sequence[Triple], results: dict[str, _ArmResult]
) -> Evidence:
    values = {
        "num_test": len(rows),
        "num_few_shot": run.config.evidence.num_few_shot,
        "max_new_tokens": run.config.evidence.max_new_tokens,
        "normalisation": "case folded, inner white space single, punctuation at both ends removed",
        "contract_digest": contract_digest,
        "arms": {name: result.metrics for name, result in results.items()},
    }
    lines = []
    for index, row in enumerate(rows):
        answers = {name: result.answers[index] for name, result in results.items()}
        lines.append(json.dumps({"id": row.id, "expected": row.output, **answers}, ensure_ascii=False) + "\n")
    evidence_file = run.folder.evidence_file
    atomic_write_text(evidence_file.with_name("answers.jsonl"), "".join(lines))
    # Written last: the stage is finished when this file exists.
    atomic_write_json(evidence_file, values)
    return Evidence(values, already_done=False)
