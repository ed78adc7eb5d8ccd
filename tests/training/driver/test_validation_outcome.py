"""A run whose validation never measured anything does not end as if it had."""

import json
from pathlib import Path

import pytest

from instruct_ray.config.train import ValidationConfig
from instruct_ray.training.driver.validation_outcome import find_validation_problem


@pytest.mark.parametrize(
    ("results", "num_answers", "problem"),
    [
        ([], 0, "no checkpoint could be validated"),
        ([(2, 0.5, None), (4, 0.4, None)], 2, "no checkpoint's answers could be generated"),
        ([(2, 0.5, None), (4, 0.4, None)], 0, None),
        ([(2, 0.5, None), (4, 0.4, 0.0)], 2, None),
    ],
)
def test_validation_that_always_failed_is_a_problem(
    results: list[tuple[int, float, float | None]], num_answers: int, problem: str | None, tmp_path: Path
) -> None:
    scores = tmp_path / "scores.jsonl"
    if results:
        lines = [json.dumps({"step": step, "loss": loss, "accuracy": accuracy}) for step, loss, accuracy in results]
        scores.write_text("\n".join(lines) + "\n")
    found = find_validation_problem(scores, ValidationConfig(num_answers=num_answers))
    assert (found or "").startswith(problem or "") and (found is None) == (problem is None)
