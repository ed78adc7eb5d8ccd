"""A model during training -> how good it is on the rows held out for that: loss, and exact answers."""

import hashlib
import heapq
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instruct_ray.config import Config, ValidationConfig
from instruct_ray.data.packing import Example, pack
from instruct_ray.data.reading.records import RowError
from instruct_ray.data.reading.triples import Triple
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.evidence.metrics import is_exact, share
from instruct_ray.inference.engine import Sampling, complete
from instruct_ray.inference.loading import load_for_inference
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.run import RunFolder
from instruct_ray.training.modeling.padded import padded_loss
from instruct_ray.training.watching.validation import Score

# Tokens of the examples computed together, at most; a longer example is computed alone.
BATCH_TOKENS = 2048
BATCH_SIZE = 16


def scorer(config: Config) -> Score | None:
    """How a run scores its checkpoints; None if it does not."""
    settings = config.train.validation
    return None if settings is None else partial(score, rows=RunFolder.of(config).validation, settings=settings)


def score(folder: Path, rows: Path, settings: ValidationConfig) -> tuple[float, float | None]:
    """(mean loss of the completions' tokens in nats, share of exact answers or None) of a complete model folder."""
    renderer = load_renderer(folder)
    triples = sample(rows, settings.num_rows)
    loss = held_out_loss(load_for_inference(folder), examples_of(renderer, triples))
    return loss, exact_share(folder, renderer, triples[: settings.num_answers], settings.max_new_tokens)


def sample(rows: Path, num_rows: int) -> list[Triple]:
    """So many rows of a file of triples, chosen and ordered by a hash of their ids: the same ones each time."""
    triples = (Triple.load(json.loads(line)) for line in rows.read_text().split("\n") if line)
    return heapq.nsmallest(num_rows, triples, key=lambda row: hashlib.sha256(row.id.encode()).digest())


def examples_of(renderer: Renderer, triples: Sequence[Triple]) -> list[Example]:
    """Their examples; `prepare` has rendered each of them before."""
    rendered = renderer.examples([row.id for row in triples], triples)
    return [example for each in rendered if not isinstance(each, RowError) for example in each]


@torch.inference_mode()
def held_out_loss(model: Any, examples: Sequence[Example]) -> float:
    """Mean cross entropy of the completions' tokens, in nats, computed as plain transformers would."""
    limit = max(BATCH_TOKENS, *(example.num_inputs for example in examples))
    packs = list(pack(examples, limit))
    total = sum(float(padded_loss(model, each, model.device)) for each in packs)
    return total / sum(each["num_trained"] for each in packs)


def exact_share(folder: Path, renderer: Renderer, triples: Sequence[Triple], max_new_tokens: int) -> float | None:
    """Share of the rows whose generated answer is the expected one; None of no rows."""
    if not triples:
        return None
    engine = TransformersEngine(folder, renderer.contract, BATCH_SIZE)
    prompts = [renderer.prompt(renderer.chat(row)) for row in triples]
    completions = complete(engine, prompts, Sampling(max_new_tokens))
    engine.close()
    answers = [renderer.tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in completions]
    return share([is_exact(answer, row.output) for answer, row in zip(answers, triples, strict=True)])
