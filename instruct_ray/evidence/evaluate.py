"""Base and tuned model -> evidence: the frozen held-out rows answered by every arm, with the engine that will serve."""

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from instruct_ray import base, run
from instruct_ray.config import Config
from instruct_ray.data.prepare import check_unchanged
from instruct_ray.data.reading.triples import Triple
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.errors import InputError
from instruct_ray.evidence.arms import Arm, choose_examples, make_arms
from instruct_ray.evidence.metrics import is_exact, is_found, share
from instruct_ray.inference.actor import start_engine
from instruct_ray.inference.engine import Sampling

# What decides the evidence.
SECTIONS = ("run", "data", "model", "train", "evidence")
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
    path = run.RunFolder.of(config).evidence
    if not path.is_file():
        raise InputError(f"{path}: no evidence; run `python -m jobs.evaluate` with this config first")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def evaluate(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Evidence:
    """Answer the held-out rows with every arm and write `evidence.json` and, row by row, `answers.jsonl`.

    `start_ray` is called once the input is known to be good.

    Raises:
        InputError: the run is not tuned yet, or the config changed since it began.
    """
    folder = run.RunFolder.of(config)
    if not (folder.model / "contract.json").is_file():
        raise InputError(f"{folder.model}: no tuned model; run `python -m jobs.tune` with this config first")
    run.check_pinned(config, *SECTIONS)
    if folder.evidence.is_file():
        return Evidence(load_evidence(config), already_done=True)
    check_unchanged(config)
    renderer = load_renderer(folder.model)
    rows = [Triple.load(json.loads(line)) for line in folder.test.read_text().split("\n") if line]
    arms = make_arms(renderer, base.resolve(config).start, folder.model, rows, choose_examples(config))
    start_ray()
    results: dict[str, dict[str, Any]] = {}
    for model_folder, group in itertools.groupby(arms, key=lambda arm: arm.folder):
        status("loading")
        engine = start_engine(model_folder, renderer.contract, config.serving)
        results |= {arm.name: _answer(arm, engine, renderer, rows, config, status) for arm in group}
        ray.kill(engine)

    run.pin(config, *SECTIONS)
    folder.evidence.parent.mkdir(exist_ok=True)
    run.write_text(folder.evidence.with_name("answers.jsonl"), _answer_lines(rows, results))
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
    run.write_json(folder.evidence, values)
    return Evidence(values, already_done=False)


def _answer(
    arm: Arm, engine: Any, renderer: Renderer, rows: Sequence[Triple], config: Config, status: Callable[[str], None]
) -> dict[str, Any]:
    sampling = Sampling(config.evidence.max_new_tokens)
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
    found = [is_found(answer, row.output) for answer, row in zip(answers, rows, strict=True)]
    return {
        "accuracy": share(exact),
        "label_found": share(found),
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
