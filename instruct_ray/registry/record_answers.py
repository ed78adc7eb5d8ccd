"""Records what the tuned model and its base answer to held-out rows, when a run is registered.

The tuned model generates answers. Of the base model one pass over them is enough: it gives their log-probabilities, and
the first token that the base model would have answered otherwise.
"""

import hashlib
import heapq
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from instruct_ray.base_model.hf_config import context_length, load_hf_config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_text
from instruct_ray.inference.loading import find_adapter_base, load_for_inference, model_digest
from instruct_ray.inference.log_probabilities import ScoredAnswer, ScoredTokens, answer_greedily, score_answers
from instruct_ray.inference.recorded_answers import (
    MAX_NEW_TOKENS,
    NUM_ROWS,
    RECORDED_ANSWERS_FILE,
    RecordedAnswer,
    RecordedAnswers,
    RecordedRow,
)
from instruct_ray.runtime_env import worker_runtime_env

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """The prompt of a held-out row."""

    row_id: str
    token_ids: tuple[int, ...]


def record_answers(run: OpenRun, start_ray: Callable[[], None] | None) -> Path:
    """Let the tuned model and its base answer held-out rows; returns the file with the answers, in the run's folder.

    What an earlier command recorded of the same model is kept: computed again elsewhere it would differ by rounding.

    Args:
        run: the run.
        start_ray: called before the models are loaded in a Ray task with the resources of a serving replica; None loads
            them in this process, which spares the start of another one.
    """
    model_dir, path = run.folder.model_dir, run.folder.path / RECORDED_ANSWERS_FILE
    digest = model_digest(model_dir)
    recorded = RecordedAnswers.load(run.folder.path)
    if recorded is None or recorded.model_digest != digest:
        renderer = load_renderer(model_dir)
        arguments = model_dir, _find_base(run), renderer.contract, _choose_prompts(run)
        if start_ray is None:
            dtype, rows = answer_prompts(*arguments)
        else:
            start_ray()
            dtype, rows = ray.get(_make_task(run.config.serving).remote(*arguments))
        recorded = RecordedAnswers(
            model_digest=digest,
            contract_digest=renderer.contract.digest,
            max_new_tokens=MAX_NEW_TOKENS,
            dtype=dtype,
            rows=tuple(rows),
        )
        atomic_write_text(path, recorded.model_dump_json() + "\n")
    if recorded.is_like_base:
        logger.warning("the tuned model answers as its base model does: tuning has no effect")
    return path


def answer_prompts(
    model_dir: Path, base_dir: Path | None, contract: PromptContract, prompts: list[Prompt]
) -> tuple[str, list[RecordedRow]]:
    """Answer prompts with a model and, unless it is None, score the answers by its base, one loaded after the other.

    Returns:
        The precision in which the tuned model was computed, and the answers.
    """
    model, prompt_ids = load_for_inference(model_dir), [list(prompt.token_ids) for prompt in prompts]
    dtype = str(model.dtype).removeprefix("torch.")
    tuned = answer_greedily(model, prompt_ids, contract, MAX_NEW_TOKENS)
    del model
    by_base: list[ScoredAnswer | None] = [None] * len(prompts)
    if base_dir is not None:
        base = load_for_inference(base_dir)
        by_base = [*score_answers(base, prompt_ids, [answer.token_ids for answer in tuned], contract)]
    return dtype, [_make_row(*values) for values in zip(prompts, tuned, by_base, strict=True)]


def _make_row(prompt: Prompt, tuned: ScoredTokens, by_base: ScoredAnswer | None) -> RecordedRow:
    return RecordedRow(
        row_id=prompt.row_id,
        prompt_ids=prompt.token_ids,
        tuned=_make_answer(tuned),
        base=None if by_base is None else _make_answer(_base_answer(tuned, by_base)),
        base_log_probs=None if by_base is None else tuple(_round(by_base.log_probs)),
    )


def _base_answer(tuned: ScoredTokens, by_base: ScoredAnswer) -> ScoredTokens:
    """The base model's own answer up to its first other token; after that it would continue another text."""
    pairs = zip(tuned.token_ids, by_base.favourites.token_ids, strict=True)
    num_equal = next((index for index, (token, other) in enumerate(pairs) if token != other), len(tuned.token_ids))
    return by_base.favourites.first(num_equal + 1)


def _make_answer(answer: ScoredTokens) -> RecordedAnswer:
    return RecordedAnswer(
        token_ids=tuple(answer.token_ids),
        log_probs=tuple(_round(answer.log_probs)),
        gaps=tuple(_round(answer.gaps)),
    )


def _round(values: list[float]) -> list[float]:
    return [round(value, 6) for value in values]


def _make_task(serving: ServingConfig) -> Any:
    return ray.remote(
        num_cpus=serving.num_cpus,
        num_gpus=serving.num_gpus,
        label_selector=serving.label_selector,
        # Its process ends with it, and so frees the memory of the models.
        max_calls=1,
        runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
    )(answer_prompts)


def _choose_prompts(run: OpenRun) -> list[Prompt]:
    """Choose held-out rows by a seeded hash, so that a rerun chooses the same; too long ones are left out."""
    seed, model_dir = run.config.run.seed, run.folder.model_dir
    with run.folder.test_rows_file.open(encoding="utf-8") as file:
        lines = heapq.nsmallest(NUM_ROWS, filter(str.strip, file), key=lambda line: _hash(seed, line))
    renderer, rows = load_renderer(model_dir), [Triple.load(json.loads(line)) for line in lines]
    prompts = [Prompt(str(row.id), tuple(renderer.prompt(renderer.chat(row), row.tools))) for row in rows]
    limit = context_length(load_hf_config(find_adapter_base(model_dir) or model_dir)) - MAX_NEW_TOKENS
    return [prompt for prompt in prompts if len(prompt.token_ids) <= limit]


def _hash(seed: int, line: str) -> bytes:
    return hashlib.sha256(f"{seed}:{line}".encode()).digest()


def _find_base(run: OpenRun) -> Path | None:
    """The model before tuning; None, with a warning, if it is no longer there."""
    try:
        return run.base_model.initial_model_dir
    except InputError as error:
        logger.warning("the answers of the base model are not recorded: %s", error)
        return None
