"""Checkpoints -> scores, by a task beside the training, off its ranks.

The scores of a checkpoint are awaited at the next one and decide there, whatever the speed of the task: a run that was
killed in between decides the same.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig, ValidationConfig
from instruct_ray.files import atomic_write_json
from instruct_ray.training.checkpoint.manifest import is_committed, load_manifest
from instruct_ray.training.distributed.engine import load_checkpoint_weights
from instruct_ray.training.export.exporter import export_format
from instruct_ray.training.export.weights import add_tokenizer_and_contract, write_weights
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.requirements import default_attn_implementation
from instruct_ray.training.validation.results import (
    ValidationResult,
    best_result,
    read_results,
    write_result,
)

# Among the scores: the model that has the best ones.
BEST_DIR = "best"
# In its folder.
BEST_RESULT_FILE = "scores.json"
POLL_SECONDS = 0.2

# A complete model folder -> (loss, accuracy); see `Scores`.
EvalFn = Callable[[Path], tuple[float, float | None]]


class ValidationSpec(BaseModel):
    """What a validation task is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_dir: Path
    adapter_dir: Path | None
    contract_file: Path
    lora: LoraConfig | None
    train: TrainConfig
    validation: ValidationConfig
    seed: int
    validation_dir: Path
    """Where results and the best model are kept."""
    events_file: Path


def validate_checkpoint(checkpoint: Path, spec: ValidationSpec, eval_fn: EvalFn) -> None:
    """Score a checkpoint once it is committed; keep its model if it is the best so far, and the scores, last."""
    while not is_committed(checkpoint):
        time.sleep(POLL_SECONDS)
    signature = load_manifest(checkpoint)
    candidate = spec.validation_dir / f".{BEST_DIR}-{signature.step}"
    shutil.rmtree(candidate, ignore_errors=True)
    try:
        _write_model(checkpoint, signature.tag, spec, candidate)
        loss, accuracy = eval_fn(candidate)
        scores = ValidationResult(step=signature.step, loss=loss, accuracy=accuracy)
        if best_result([*read_results(spec.validation_dir, signature.step), scores], spec.validation) is scores:
            atomic_write_json(candidate / BEST_RESULT_FILE, scores.model_dump())
            shutil.rmtree(spec.validation_dir / BEST_DIR, ignore_errors=True)
            candidate.replace(spec.validation_dir / BEST_DIR)
        write_result(spec.validation_dir, scores)
    finally:
        shutil.rmtree(candidate, ignore_errors=True)


def _write_model(checkpoint: Path, tag: str, spec: ValidationSpec, folder: Path) -> None:
    dtype = DTYPES[spec.train.precision]
    state = load_checkpoint_weights(checkpoint, tag, spec.train.zero_stage)
    implementation = default_attn_implementation(load_hf_config(spec.base_dir))
    model = load_model(spec.base_dir, spec.lora, spec.train, dtype, spec.seed, implementation, spec.adapter_dir)
    # Frozen weights are those of the base.
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or trained & set(missing):
        raise RuntimeError(f"{checkpoint} holds other weights than the model: {[*unknown, *missing][0]}")
    form = export_format(spec.lora)
    write_weights(model, weights if form == "full" else {n: weights[n] for n in trained}, folder, form)
    add_tokenizer_and_contract(folder, spec.base_dir, spec.contract_file)


def load_best_result(folder: Path) -> ValidationResult | None:
    """Those of the best model; None if there is none."""
    path = folder / BEST_DIR / BEST_RESULT_FILE
    return ValidationResult.model_validate_json(path.read_text()) if path.is_file() else None
