"""How good each checkpoint is on the rows held out for validation, and what follows from it."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.config.train import ValidationConfig
from instruct_ray.files import atomic_write_json


class ValidationResult(BaseModel):
    """The scores of one checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float
    """Mean over the completions' tokens, in nats."""
    accuracy: float | None
    """Share of the generated answers that are exact; None if none were generated."""


def result_file(folder: Path, step: int) -> Path:
    """Where the scores of a checkpoint are kept."""
    return folder / f"step-{step:07d}.json"


def write_result(folder: Path, scores: ValidationResult) -> None:
    """Keep them, and add a line for those who follow the run."""
    with (folder / "scores.jsonl").open("a") as file:
        file.write(json.dumps(scores.model_dump() | {"time": time.time()}) + "\n")
    atomic_write_json(result_file(folder, scores.step), scores.model_dump())


def read_results(folder: Path, before: int) -> list[ValidationResult]:
    """Those of the checkpoints before a step, in order; a run that went back to an earlier one has others as well."""
    scores = [ValidationResult.model_validate_json(path.read_text()) for path in sorted(folder.glob("step-*.json"))]
    return [each for each in scores if each.step < before]


def best_result(scores: Sequence[ValidationResult], validation: ValidationConfig) -> ValidationResult:
    """The best, of equal ones the first."""
    if validation.metric == "loss":
        return min(scores, key=lambda each: each.loss)
    return max(scores, key=lambda each: each.accuracy or 0.0)


def patience_exhausted(scores: Sequence[ValidationResult], validation: ValidationConfig) -> bool:
    """Whether the last `patience` checkpoints were no better than the best before them."""
    if validation.patience is None or not scores:
        return False
    best = best_result(scores, validation)
    return sum(each.step > best.step for each in scores) >= validation.patience
