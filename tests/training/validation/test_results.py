"""Which checkpoint is the best, and when training stops early."""

import math
from itertools import permutations
from pathlib import Path
from typing import Literal

import pytest

from instruct_ray.config.train import ValidationConfig
from instruct_ray.training.validation.results import (
    ValidationResult,
    best_result,
    is_better,
    patience_exhausted,
    read_results,
    write_result,
)


def make_results(*losses: float) -> list[ValidationResult]:
    return [ValidationResult(step=10 * (n + 1), loss=loss, accuracy=1 - loss) for n, loss in enumerate(losses)]


def test_first_of_equal_results_is_the_best() -> None:
    results = make_results(0.5, 0.3, 0.4, 0.3)
    assert best_result(results, ValidationConfig()) is results[1]
    assert best_result(results, ValidationConfig(metric="accuracy")) is results[1]


def test_metric_decides_which_result_is_the_best() -> None:
    results = [ValidationResult(step=1, loss=0.1, accuracy=0.5), ValidationResult(step=2, loss=0.2, accuracy=0.9)]
    assert best_result(results, ValidationConfig(metric="loss")) is results[0]
    assert best_result(results, ValidationConfig(metric="accuracy")) is results[1]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_order_in_which_results_arrive_does_not_matter(metric: Literal["loss", "accuracy"]) -> None:
    results = make_results(0.5, 0.3, 0.4, 0.3)
    assert {best_result(order, ValidationConfig(metric=metric)) for order in permutations(results)} == {results[1]}


def test_result_without_the_metric_is_never_the_best() -> None:
    unanswered = ValidationResult(step=1, loss=0.1, accuracy=None)
    diverged = ValidationResult(step=2, loss=math.nan, accuracy=0.5)
    assert not is_better(unanswered, None, ValidationConfig(metric="accuracy"))
    assert best_result([unanswered, diverged], ValidationConfig(metric="accuracy")) is diverged
    assert best_result([diverged, unanswered], ValidationConfig()) is unanswered
    # Nor does it use up the patience: nobody knows whether it is better.
    later = [diverged, *(unanswered.model_copy(update={"step": step}) for step in (3, 4, 5))]
    assert not patience_exhausted(later, ValidationConfig(metric="accuracy", patience=1))


@pytest.mark.parametrize(
    ("losses", "patience", "is_exhausted"),
    [
        ((0.5, 0.3, 0.4), 2, False),
        ((0.5, 0.3, 0.4, 0.3), 2, True),
        ((0.5, 0.3, 0.4, 0.2), 2, False),
        ((0.5, 0.6), 1, True),
        ((0.5, 0.6, 0.7), None, False),
        ((), 1, False),
    ],
)
def test_patience(losses: tuple[float, ...], patience: int | None, is_exhausted: bool) -> None:
    assert patience_exhausted(make_results(*losses), ValidationConfig(patience=patience)) is is_exhausted


def test_results_of_later_steps_are_not_read(tmp_path: Path) -> None:
    for result in make_results(0.5, 0.4, 0.3):
        write_result(tmp_path, result)
    assert [result.step for result in read_results(tmp_path, before=30)] == [10, 20]
