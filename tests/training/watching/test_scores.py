"""Which checkpoint is the best, and when training has had enough."""

from pathlib import Path

import pytest

from instruct_ray.config import ValidationConfig
from instruct_ray.training.watching.scores import Scores, best_of, is_enough, read_scores, write_scores


def scores(*losses: float) -> list[Scores]:
    return [Scores(step=10 * (n + 1), loss=loss, accuracy=1 - loss) for n, loss in enumerate(losses)]


def test_the_best_is_the_first_of_equal_ones() -> None:
    assert best_of(scores(0.5, 0.3, 0.4, 0.3), ValidationConfig()).step == 20
    assert best_of(scores(0.5, 0.3, 0.4, 0.3), ValidationConfig(metric="accuracy")).step == 20


def test_the_metric_decides() -> None:
    both = [Scores(step=1, loss=0.1, accuracy=0.5), Scores(step=2, loss=0.2, accuracy=0.9)]
    assert best_of(both, ValidationConfig(metric="loss")).step == 1
    assert best_of(both, ValidationConfig(metric="accuracy")).step == 2


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
    assert is_enough(scores(*losses), ValidationConfig(patience=patience)) is enough


def test_later_scores_are_not_seen(tmp_path: Path) -> None:
    for each in scores(0.5, 0.4, 0.3):
        write_scores(tmp_path, each)
    assert [each.step for each in read_scores(tmp_path, before=30)] == [10, 20]
