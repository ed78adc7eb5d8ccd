"""driver: whether the validation of a finished run has measured anything."""

import json
from pathlib import Path

from instruct_ray.config.train import ValidationConfig


def find_validation_problem(scores_file: Path, validation: ValidationConfig) -> str | None:
    """Describe what the validation of a run never measured; None if every measure has a value for some checkpoint.

    A run goes on without the result of a checkpoint, since the next one may succeed. If none did, `train.validation`
    was asked for in vain, and the run's model is not the best of its checkpoints but the last.
    """
    lines = scores_file.read_text().splitlines() if scores_file.is_file() else []
    results = [json.loads(line) for line in lines]
    if not results:
        return "no checkpoint could be validated"
    if validation.num_answers and all(result["accuracy"] is None for result in results):
        return "no checkpoint's answers could be generated for validation"
    return None
