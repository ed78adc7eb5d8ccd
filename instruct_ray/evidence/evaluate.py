"""Base and tuned model -> evidence: the frozen held-out rows answered by every arm, with the engine that will serve."""

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import open_run
from instruct_ray.data.prepare.pipeline import check_sources_unchanged
from instruct_ray.data.rendering.contract import CONTRACT_FILE
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.arms import Arm, choose_few_shot_examples, make_arms
from instruct_ray.evidence.metrics import contains_expected, fraction, is_exact
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.inference.engine import SamplingParams
from instruct_ray.inference.engine_actor import start_engine_actor
from instruct_ray.run.folder import RunFolder

# Prompts sent to the engine at once: a few batches, so that progress shows.
CHUNK = 32


@dataclass(frozen=True)
class Evidence:
    """The content of `evidence.json`."""

    values: dict[str, Any]
    already_done: bool


def load_evidence(config: Config) -> dict[str, Any]:
    """The evidence of a run.

    Raises:
        InputError: it has none yet.
    """
    path = RunFolder.from_config(config).evidence_file
    if not path.is_file():
        raise InputError(f"{path}: no evidence; run `instruct-ray evaluate` with this config first")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def evaluate(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Evidence:
    """Answer the held-out rows with every arm and write `evidence.json` and, row by row, `answers.jsonl`.

    `start_ray` is called once the input is known to be good.

    Raises:
        InputError: the run is not tuned yet, or the config changed since it began.
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
    results: dict[str, dict[str, Any]] = {}
    for model_folder, group in itertools.groupby(arms, key=lambda arm: arm.folder):
        status("loading")
        engine = start_engine_actor(model_folder, renderer.contract, config.serving)
        results |= {arm.name: _answer(arm, engine, renderer, rows, config, status) for arm in group}
        ray.kill(engine)

    run.freeze()
    folder.evidence_file.parent.mkdir(exist_ok=True)
    atomic_write_text(folder.evidence_file.with_name("answers.jsonl"), _answer_lines(rows, results))
    values = {
        "num_test": len(rows),
        "num_few_shot": config.evidence.num_few_shot,
        "max_new_tokens": config.evidence.max_new_tokens,
        "normalisation": "case folded, inner white space single, punctuation at both ends removed",
        "contract_digest": renderer.contract.digest,
        "arms": {
            name: {key: value for key, value in result.items() if key != "answers"} for name, result in results.items()
        },
    }
    atomic_write_json(folder.evidence_file, values)
    return Evidence(values, already_done=False)


def _answer(
    arm: Arm, engine: Any, renderer: Renderer, rows: Sequence[Triple], config: Config, status: Callable[[str], None]
) -> dict[str, Any]:
    sampling = SamplingParams(config.evidence.max_new_tokens)
    # Like lengths together: less padding in a batch.
    order = sorted(range(len(rows)), key=lambda index: len(arm.prompts[index]))
    answers = [""] * len(rows)
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        completions, _ = ray.get(engine.answer.remote([arm.prompts[index] for index in chunk], sampling))
        for index, completion in zip(chunk, completions, strict=True):
            answers[index] = renderer.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        status(f"{arm.name}: {start + len(chunk)}/{len(rows)} rows")
    latencies = []
    for prompt in arm.prompts[: config.evidence.num_latency_rows]:
        _, seconds = ray.get(engine.answer.remote([prompt], sampling))
        latencies.append(seconds)
        status(f"{arm.name}: latency, {len(latencies)} of {config.evidence.num_latency_rows} requests")
    exact = [is_exact(answer, row.output) for answer, row in zip(answers, rows, strict=True)]
    found = [contains_expected(answer, row.output) for answer, row in zip(answers, rows, strict=True)]
    return {
        "accuracy": fraction(exact),
        "label_found": fraction(found),
        "prompt_tokens": statistics.fmean(len(prompt) for prompt in arm.prompts),
        "latency_p50_seconds": statistics.median(latencies),
        "answers": answers,
    }


def _answer_lines(rows: Sequence[Triple], results: dict[str, dict[str, Any]]) -> str:
    lines = []
    for index, row in enumerate(rows):
        answers = {name: result["answers"][index] for name, result in results.items()}
        lines.append(json.dumps({"id": row.id, "expected": row.output, **answers}, ensure_ascii=False))
    return "\n".join(lines) + "\n"
