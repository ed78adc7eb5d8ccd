"""validation task: writes the model of a checkpoint and generates answers with it, while training continues.

It writes nothing but the folder that it is given, and returns what it found: rank 0 of the training workers decides
what becomes of both. So a task that was given up changes nothing.
"""

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.base_model.causal_lm import default_attn_implementation
from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig, ValidationConfig
from instruct_ray.files import atomic_directory
from instruct_ray.training.checkpoint.manifest import check_files, is_committed, load_manifest
from instruct_ray.training.distributed.checkpoint_weights import load_checkpoint_weights, pickled_files
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.export.weights import add_tokenizer_and_contract, write_weights
from instruct_ray.training.model.load import DTYPES, load_model

POLL_SECONDS = 0.2

# A complete model folder -> accuracy, as in `ValidationResult`.
EvalFn = Callable[[Path], float]


class ValidationSpec(BaseModel):
    """How the checkpoints of a run are validated, the same for all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_dir: Path
    adapter_dir: Path | None
    contract_file: Path
    rows_file: Path
    """The rows held out for validation."""
    lora: LoraConfig | None
    token_ids: tuple[int, ...] = ()
    """As in `WorkerSpec`."""
    train: TrainConfig
    validation: ValidationConfig
    seed: int
    validation_dir: Path
    """Where the results and the best model are written."""


def validate_checkpoint(
    checkpoint: Path, spec: ValidationSpec, model_dir: Path, eval_fn: EvalFn | None
) -> float | None:
    """Write the model of a checkpoint to `model_dir` once it is committed; return its accuracy, None without `eval_fn`.

    Raises:
        TimeoutError: the checkpoint is not committed within `train.validation.max_wait_seconds`.
        ValueError: its files differ from its manifest.
        RuntimeError: it doesn't hold the weights of the model.
    """
    _wait_until_committed(checkpoint, spec.validation.max_wait_seconds)
    with atomic_directory(model_dir) as unfinished_dir:
        _write_model(checkpoint, spec, unfinished_dir)
    return None if eval_fn is None else eval_fn(model_dir)


def _wait_until_committed(checkpoint: Path, max_seconds: float) -> None:
    deadline = time.monotonic() + max_seconds
    while not is_committed(checkpoint):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{checkpoint} was not committed within {max_seconds:g} s")
        time.sleep(POLL_SECONDS)


def _write_model(checkpoint: Path, spec: ValidationSpec, model_dir: Path) -> None:
    """Write the model of a checkpoint as a complete model folder."""
    dtype, tag = DTYPES[spec.train.precision], load_manifest(checkpoint).tag
    # Unpickling runs what the files say, so they must be what the ranks wrote.
    check_files(checkpoint, pickled_files(checkpoint, tag, spec.train.zero_stage))
    state = load_checkpoint_weights(checkpoint, tag, spec.train.zero_stage)
    attn_implementation = default_attn_implementation(load_hf_config(spec.base_dir))
    model = load_model(
        spec.base_dir,
        spec.lora,
        spec.train,
        dtype,
        spec.seed,
        attn_implementation,
        spec.adapter_dir,
        spec.token_ids,
    )
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    # Frozen weights are missing: they are those of the base model.
    missing, unknown = model.load_state_dict(weights, strict=False)
    if mismatched := [*unknown, *sorted(trained_names & set(missing))]:
        raise RuntimeError(f"{checkpoint} doesn't hold the weights of the model: {mismatched[0]} is missing or unknown")
    format_ = export_format(spec.lora)
    exported = model.state_dict() if format_ == "full" else {name: weights[name] for name in trained_names}
    write_weights(model, exported, model_dir, format_)
    add_tokenizer_and_contract(model_dir, spec.base_dir, spec.contract_file)
