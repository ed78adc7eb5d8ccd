"""Which checkpoint is the best, and when training has had enough."""

from pathlib import Path

import pytest

from instruct_ray.config.train import ValidationConfig
from instruct_ray.training.validation.results import (
    ValidationResult,
    best_result,
    patience_exhausted,
    read_results,
    write_result,
)


def scores(*losses: float) -> list[ValidationResult]:
    return [ValidationResult(step=10 * (n + 1), loss=loss, accuracy=1 - loss) for n, loss in enumerate(losses)]


def test_the_best_is_the_first_of_equal_ones() -> None:
    assert best_result(scores(0.5, 0.3, 0.4, 0.3), ValidationConfig()).step == 20
    assert best_result(scores(0.5, 0.3, 0.4, 0.3), ValidationConfig(metric="accuracy")).step == 20


def test_the_metric_decides() -> None:
    both = [ValidationResult(step=1, loss=0.1, accuracy=0.5), ValidationResult(step=2, loss=0.2, accuracy=0.9)]
    assert best_result(both, ValidationConfig(metric="loss")).step == 1
    assert best_result(both, ValidationConfig(metric="accuracy")).step == 2


@pytest.mark.parametrize(
    ("losses", "patience", "enough"),
    [
        ((0.5, 0.3, 0.4), 2, False),
        ((0.5, 0.3, 0.4, 0.3), 2, True),
        ((0.5, 0.3, 0.4, 0.2), 2, False),
        ((0.5, 0.6), 1, True),
        ((0.5, 0.6, 0.7), None, False),
        ((), 1, False),
    ],
)
def test_patience(losses: tuple[float, ...], patience: int | None, enough: bool) -> None:
    assert patience_exhausted(scores(*losses), ValidationConfig(patience=patience)) is enough


def test_later_scores_are_not_seen(tmp_path: Path) -> None:
    for each in scores(0.5, 0.4, 0.3):
        write_result(tmp_path, each)
    assert [each.step for each in read_results(tmp_path, before=30)] == [10, 20]
