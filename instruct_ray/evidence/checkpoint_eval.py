"""A model during training -> how good it is on the rows held out for that: loss, and exact answers."""

import hashlib
import heapq
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instruct_ray.config.schema import Config
from instruct_ray.config.train import ValidationConfig
from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.metrics import fraction, is_exact
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.loading import load_for_inference
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.model.padded import padded_loss
from instruct_ray.training.validation.task import EvalFn

# Tokens of the examples computed together, at most; a longer example is computed alone.
BATCH_TOKENS = 2048
BATCH_SIZE = 16


def make_eval_fn(config: Config) -> EvalFn | None:
    """How a run scores its checkpoints; None if it does not."""
    settings = config.train.validation
    return (
        None
        if settings is None
        else partial(evaluate_checkpoint, rows=RunFolder.from_config(config).validation_rows_file, settings=settings)
    )


def evaluate_checkpoint(folder: Path, rows: Path, settings: ValidationConfig) -> tuple[float, float | None]:
    """(mean loss of the completions' tokens in nats, share of exact answers or None) of a complete model folder."""
    renderer = load_renderer(folder)
    triples = sample_rows(rows, settings.num_rows)
    loss = compute_loss(load_for_inference(folder), render_examples(renderer, triples))
    return loss, compute_exact_match(folder, renderer, triples[: settings.num_answers], settings.max_new_tokens)


def sample_rows(rows: Path, num_rows: int) -> list[Triple]:
    """So many rows of a file of triples, chosen and ordered by a hash of their ids: the same ones each time."""
    triples = (Triple.load(json.loads(line)) for line in rows.read_text().split("\n") if line)
    return heapq.nsmallest(num_rows, triples, key=lambda row: hashlib.sha256(row.id.encode()).digest())


def render_examples(renderer: Renderer, triples: Sequence[Triple]) -> list[Example]:
    """Their examples; `prepare` has rendered each of them before."""
    rendered = renderer.examples([row.id for row in triples], triples)
    return [example for each in rendered if not isinstance(each, RowError) for example in each]


@torch.inference_mode()
def compute_loss(model: Any, examples: Sequence[Example]) -> float:
    """Mean cross entropy of the completions' tokens, in nats, computed as plain transformers would."""
    limit = max(BATCH_TOKENS, *(example.num_inputs for example in examples))
    packs = list(pack_examples(examples, limit))
    total = sum(float(padded_loss(model, each, model.device)) for each in packs)
    return total / sum(each["num_trained"] for each in packs)


def compute_exact_match(
    folder: Path, renderer: Renderer, triples: Sequence[Triple], max_new_tokens: int
) -> float | None:
    """Share of the rows whose generated answer is the expected one; None of no rows."""
    if not triples:
        return None
    engine = TransformersEngine(folder, renderer.contract, BATCH_SIZE)
    prompts = [renderer.prompt(renderer.chat(row)) for row in triples]
    completions = generate_all(engine, prompts, SamplingParams(max_new_tokens))
    engine.close()
    answers = [renderer.tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in completions]
    return fraction([is_exact(answer, row.output) for answer, row in zip(answers, triples, strict=True)])
