"""validation task: writes the result of each checkpoint to a file; rank 0 reads and compares them."""

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.config.train import ValidationConfig
from instruct_ray.files import append_json_line, atomic_write_json
from instruct_ray.run.folder import VALIDATION_SCORES_FILE


class ValidationResult(BaseModel):
    """How good a checkpoint is on the rows held out for validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float
    """Mean over the tokens of the completions, in nats."""
    accuracy: float | None
    """Fraction of the generated answers that are exactly the expected ones; None if none were generated."""


def result_file(validation_dir: Path, step: int) -> Path:
    """Return the path of a checkpoint's result."""
    return validation_dir / f"step-{step:07d}.json"


def write_result(validation_dir: Path, result: ValidationResult) -> None:
    """Write a result, and append it to the lines that are uploaded to MLflow."""
    append_json_line(validation_dir / VALIDATION_SCORES_FILE, result.model_dump() | {"time": time.time()})
    atomic_write_json(result_file(validation_dir, result.step), result.model_dump())


def read_results(validation_dir: Path, before: int) -> list[ValidationResult]:
    """Read the results of the checkpoints before a step, in order.

    A run that resumed from an earlier checkpoint also has results of later ones.
    """
    paths = sorted(validation_dir.glob("step-*.json"))
    results = [ValidationResult.model_validate_json(path.read_text()) for path in paths]
    return [result for result in results if result.step < before]


def best_result(results: Sequence[ValidationResult], validation: ValidationConfig) -> ValidationResult:
    """Return the best result by `train.validation.metric`; of equal ones the first."""
    if validation.metric == "loss":
        return min(results, key=lambda result: result.loss)
    return max(results, key=lambda result: result.accuracy or 0.0)


def patience_exhausted(results: Sequence[ValidationResult], validation: ValidationConfig) -> bool:
    """Whether the last `train.validation.patience` results are no better than the best before them."""
    if validation.patience is None or not results:
        return False
    best = best_result(results, validation)
    return sum(result.step > best.step for result in results) >= validation.patience
