"""Evaluates a checkpoint on the validation rows during training: exact match of generated answers."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.config.train import ValidationConfig
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.metrics import fraction, is_exact
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.validation.rows import sample_rows
from instruct_ray.training.validation.task import EvalFn

# Answers generated in one batch.
BATCH_SIZE = 16


def make_eval_fn(config: Config) -> EvalFn | None:
    """Make the function that evaluates the models of a run's checkpoints; None if `train.validation` is not set."""
    validation = config.train.validation
    if validation is None:
        return None
    rows_file = RunFolder.from_config(config).validation_rows_file
    return partial(evaluate_checkpoint, rows_file=rows_file, validation=validation)


def evaluate_checkpoint(model_dir: Path, rows_file: Path, validation: ValidationConfig) -> float:
    """Evaluate a complete model folder; returns the fraction of exact answers."""
    triples = sample_rows(rows_file, validation.num_rows)[: validation.num_answers]
    return compute_exact_match(model_dir, load_renderer(model_dir), triples, validation.max_new_tokens)


def compute_exact_match(model_dir: Path, renderer: Renderer, triples: Sequence[Triple], max_new_tokens: int) -> float:
    """Compute the fraction of triples whose generated answer is exactly the expected one."""
    engine = create_engine(model_dir, renderer.contract, ServingConfig(max_batch_size=BATCH_SIZE))
    prompts = [renderer.prompt(renderer.chat(triple), triple.tools) for triple in triples]
    completions = generate_all(engine, prompts, SamplingParams(max_new_tokens))
    engine.close()
    answers = [renderer.decode(completion.token_ids) for completion in completions]
    return fraction([is_exact(answer, triple.output) for answer, triple in zip(answers, triples, strict=True)])
