"""Evaluates a checkpoint on the validation rows during training: loss, and exact match of generated answers."""

import hashlib
import heapq
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instruct_ray.config.schema import Config, ServingConfig
from instruct_ray.config.train import ValidationConfig
from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.metrics import fraction, is_exact
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.loading import load_for_inference
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.model.padded import padded_loss
from instruct_ray.training.validation.task import EvalFn

# Maximum number of tokens per forward pass of the loss. A longer example is computed alone.
BATCH_TOKENS = 2048
# Answers generated in one batch.
BATCH_SIZE = 16


def make_eval_fn(config: Config) -> EvalFn | None:
    """Make the function that evaluates the checkpoints of a run; None if `train.validation` is not set."""
    validation = config.train.validation
    if validation is None:
        return None
    rows_file = RunFolder.from_config(config).validation_rows_file
    return partial(evaluate_checkpoint, rows_file=rows_file, validation=validation)


def evaluate_checkpoint(model_dir: Path, rows_file: Path, validation: ValidationConfig) -> tuple[float, float | None]:
    """Evaluate a complete model folder.

    Returns:
        The mean loss of the completions' tokens in nats, and the fraction of exact answers; None if none are generated.
    """
    renderer = load_renderer(model_dir)
    triples = sample_rows(rows_file, validation.num_rows)
    loss = compute_loss(load_for_inference(model_dir), render_examples(renderer, triples))
    answered = triples[: validation.num_answers]
    return loss, compute_exact_match(model_dir, renderer, answered, validation.max_new_tokens)


def sample_rows(rows_file: Path, num_rows: int) -> list[Triple]:
    """Sample `num_rows` triples, chosen and ordered by a hash of their ids: every call returns the same."""
    triples = (Triple.load(json.loads(line)) for line in rows_file.read_text().split("\n") if line)
    return heapq.nsmallest(num_rows, triples, key=lambda triple: hashlib.sha256(triple.id.encode()).digest())


def render_examples(renderer: Renderer, triples: Sequence[Triple]) -> list[Example]:
    """Render the examples of all triples. None of them fails: `prepare` has rendered them before."""
    rows = renderer.examples([triple.id for triple in triples], triples)
    return [example for examples in rows if not isinstance(examples, RowError) for example in examples]


@torch.inference_mode()
def compute_loss(model: Any, examples: Sequence[Example]) -> float:
    """Compute the mean cross entropy of the completions' tokens in nats, as plain transformers would."""
    max_tokens = max(BATCH_TOKENS, *(example.num_inputs for example in examples))
    packs = list(pack_examples(examples, max_tokens))
    loss_sum = sum(float(padded_loss(model, pack, model.device)) for pack in packs)
    return loss_sum / sum(pack["num_trained"] for pack in packs)


def compute_exact_match(
    model_dir: Path, renderer: Renderer, triples: Sequence[Triple], max_new_tokens: int
) -> float | None:
    """Compute the fraction of triples whose generated answer is exactly the expected one; None without triples."""
    if not triples:
        return None
    engine = create_engine(model_dir, renderer.contract, ServingConfig(max_batch_size=BATCH_SIZE))
    prompts = [renderer.prompt(renderer.chat(triple)) for triple in triples]
    completions = generate_all(engine, prompts, SamplingParams(max_new_tokens))
    engine.close()
    answers = [renderer.tokenizer.decode(completion.token_ids, skip_special_tokens=True) for completion in completions]
    return fraction([is_exact(answer, triple.output) for answer, triple in zip(answers, triples, strict=True)])
