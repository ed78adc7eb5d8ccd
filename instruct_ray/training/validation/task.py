"""validation task: evaluates a checkpoint in a Ray task while training continues.

The result is awaited at the next checkpoint and acted on there, whatever the speed of the task. So a run that was
killed in between decides like an uninterrupted one.
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
from instruct_ray.training.distributed.checkpoint_weights import load_checkpoint_weights
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.export.weights import add_tokenizer_and_contract, write_weights
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.requirements import default_attn_implementation
from instruct_ray.training.validation.results import ValidationResult, best_result, read_results, write_result

# In the validation folder: the model with the best result so far.
BEST_DIR = "best"
# In BEST_DIR: its result.
BEST_RESULT_FILE = "scores.json"
POLL_SECONDS = 0.2

# A complete model folder -> (loss, accuracy), as in `ValidationResult`.
EvalFn = Callable[[Path], tuple[float, float | None]]


class ValidationSpec(BaseModel):
    """The input of a validation task, the same for all checkpoints of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_dir: Path
    adapter_dir: Path | None
    contract_file: Path
    lora: LoraConfig | None
    train: TrainConfig
    validation: ValidationConfig
    seed: int
    validation_dir: Path
    """Where the results and the best model are written."""
    events_file: Path


def validate_checkpoint(checkpoint: Path, spec: ValidationSpec, eval_fn: EvalFn) -> None:
    """Evaluate a checkpoint once it is committed, and keep its model if it is the best so far.

    The result is written last, so a checkpoint with a result needs no further work.
    """
    while not is_committed(checkpoint):
        time.sleep(POLL_SECONDS)
    manifest = load_manifest(checkpoint)
    candidate = spec.validation_dir / f".{BEST_DIR}-{manifest.step}"
    shutil.rmtree(candidate, ignore_errors=True)
    try:
        _write_model(checkpoint, manifest.tag, spec, candidate)
        loss, accuracy = eval_fn(candidate)
        result = ValidationResult(step=manifest.step, loss=loss, accuracy=accuracy)
        if best_result([*read_results(spec.validation_dir, manifest.step), result], spec.validation) is result:
            atomic_write_json(candidate / BEST_RESULT_FILE, result.model_dump())
            shutil.rmtree(spec.validation_dir / BEST_DIR, ignore_errors=True)
            candidate.replace(spec.validation_dir / BEST_DIR)
        write_result(spec.validation_dir, result)
    finally:
        shutil.rmtree(candidate, ignore_errors=True)


def load_best_result(validation_dir: Path) -> ValidationResult | None:
    """Load the result of the best model; None if no checkpoint was validated."""
    path = validation_dir / BEST_DIR / BEST_RESULT_FILE
    return ValidationResult.model_validate_json(path.read_text()) if path.is_file() else None


def _write_model(checkpoint: Path, tag: str, spec: ValidationSpec, model_dir: Path) -> None:
    """Write the model of a checkpoint as a complete model folder.

    Raises:
        RuntimeError: the checkpoint doesn't hold the weights of the model.
    """
    dtype = DTYPES[spec.train.precision]
    state = load_checkpoint_weights(checkpoint, tag, spec.train.zero_stage)
    attn_implementation = default_attn_implementation(load_hf_config(spec.base_dir))
    model = load_model(spec.base_dir, spec.lora, spec.train, dtype, spec.seed, attn_implementation, spec.adapter_dir)
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    # Frozen weights are missing: they are those of the base model.
    missing, unknown = model.load_state_dict(weights, strict=False)
    if mismatched := [*unknown, *sorted(trained_names & set(missing))]:
        raise RuntimeError(f"{checkpoint} doesn't hold the weights of the model: {mismatched[0]} is missing or unknown")
    format_ = export_format(spec.lora)
    exported = weights if format_ == "full" else {name: weights[name] for name in trained_names}
    write_weights(model, exported, model_dir, format_)
    add_tokenizer_and_contract(model_dir, spec.base_dir, spec.contract_file)
