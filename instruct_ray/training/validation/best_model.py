"""worker, rank 0: keeps the model with the best validation result, from which the driver makes the run's model."""

import shutil
import uuid
from pathlib import Path

from instruct_ray.config.train import ValidationConfig
from instruct_ray.files import atomic_write_json
from instruct_ray.training.validation.results import ValidationResult, is_better

# In the validation folder: the model with the best result so far.
BEST_DIR = "best"
# In BEST_DIR: its result.
BEST_RESULT_FILE = "scores.json"
# The former best model, while it is being replaced.
FORMER_DIR = ".best-former"
CANDIDATE_PREFIX = ".candidate-"


def new_candidate_dir(validation_dir: Path, step: int) -> Path:
    """A folder for the model of a checkpoint. The name is unique: a task that was given up may still write to it."""
    return validation_dir / f"{CANDIDATE_PREFIX}{step:07d}-{uuid.uuid4().hex[:8]}"


def load_best_result(validation_dir: Path) -> ValidationResult | None:
    """Load the result of the best model; None if there is none."""
    path = validation_dir / BEST_DIR / BEST_RESULT_FILE
    return ValidationResult.model_validate_json(path.read_text()) if path.is_file() else None


def keep_if_best(validation_dir: Path, candidate: Path, result: ValidationResult, validation: ValidationConfig) -> bool:
    """Make a candidate the best model if its result is the best of all, and remove it otherwise.

    Only rank 0 calls this, for one checkpoint after the other, so the best model is compared with every result.
    Returns false if the result is the best but there is no candidate: its task failed or was given up.
    """
    if not is_better(result, load_best_result(validation_dir), validation):
        shutil.rmtree(candidate, ignore_errors=True)
        return True
    if not candidate.is_dir():
        return False
    atomic_write_json(candidate / BEST_RESULT_FILE, result.model_dump())
    best_dir, former_dir = validation_dir / BEST_DIR, validation_dir / FORMER_DIR
    shutil.rmtree(former_dir, ignore_errors=True)
    if best_dir.is_dir():
        best_dir.replace(former_dir)
    candidate.replace(best_dir)
    shutil.rmtree(former_dir, ignore_errors=True)
    return True


def clean_up(validation_dir: Path) -> None:
    """Repair what a killed attempt left: a best model that was being replaced, and candidates."""
    best_dir, former_dir = validation_dir / BEST_DIR, validation_dir / FORMER_DIR
    if former_dir.is_dir() and not best_dir.is_dir():
        former_dir.replace(best_dir)
    for path in [former_dir, *validation_dir.glob(f".*{CANDIDATE_PREFIX[1:]}*")]:
        shutil.rmtree(path, ignore_errors=True)
