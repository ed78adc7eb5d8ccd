"""worker, rank 0: writes, reads and compares the results of the validated checkpoints."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.config.train import ValidationConfig
from instruct_ray.files import append_json_line, atomic_write_json
from instruct_ray.run.folder import VALIDATION_SCORES_FILE

# The checkpoint that is being validated.
PENDING_FILE = ".pending.json"


class PendingValidation(BaseModel):
    """A checkpoint whose validation has begun: its loss is known, its answers and its result are not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    checkpoint: Path
    loss: float
    """Mean over the tokens of the completions, in nats."""


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


def read_results(validation_dir: Path, before: float = math.inf) -> list[ValidationResult]:
    """Read the results of the checkpoints before a step, in order."""
    paths = sorted(validation_dir.glob("step-*.json"))
    results = [ValidationResult.model_validate_json(path.read_text()) for path in paths]
    return [result for result in results if result.step < before]


def write_pending(validation_dir: Path, pending: PendingValidation) -> None:
    """Record the checkpoint that is being validated, so that an attempt that is killed can be continued."""
    atomic_write_json(validation_dir / PENDING_FILE, pending.model_dump(mode="json"))


def read_pending(validation_dir: Path) -> PendingValidation | None:
    """Read the checkpoint that was being validated when the last attempt ended; None if there was none."""
    path = validation_dir / PENDING_FILE
    return PendingValidation.model_validate_json(path.read_text()) if path.is_file() else None


def remove_pending(validation_dir: Path) -> None:
    """Remove the record of the checkpoint that is being validated."""
    (validation_dir / PENDING_FILE).unlink(missing_ok=True)


def best_result(results: Sequence[ValidationResult], validation: ValidationConfig) -> ValidationResult | None:
    """Return the best result by `train.validation.metric`; of equal ones the first. None if none has that metric."""
    best: ValidationResult | None = None
    for result in results:
        if is_better(result, best, validation):
            best = result
    return best


def is_better(result: ValidationResult, best: ValidationResult | None, validation: ValidationConfig) -> bool:
    """Whether a result is better than the best one so far, or equal and not of a later step."""
    error = _error(result, validation)
    best_error = None if best is None else _error(best, validation)
    if best is None or error is None or best_error is None:
        return error is not None
    return (error, result.step) <= (best_error, best.step)


def patience_exhausted(results: Sequence[ValidationResult], validation: ValidationConfig) -> bool:
    """Whether the last `train.validation.patience` results are no better than the best before them.

    A checkpoint whose answers are missing does not count where the accuracy decides.
    """
    best = best_result(results, validation)
    if validation.patience is None or best is None:
        return False
    later = [result for result in results if result.step > best.step and _error(result, validation) is not None]
    return len(later) >= validation.patience


def _error(result: ValidationResult, validation: ValidationConfig) -> float | None:
    """The metric that decides, as a number that is better the smaller it is; None if the result lacks it."""
    if validation.metric == "accuracy":
        return None if result.accuracy is None else -result.accuracy
    return result.loss if math.isfinite(result.loss) else None
