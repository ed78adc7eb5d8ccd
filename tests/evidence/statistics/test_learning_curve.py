"""The learning curve: fits of known curves, coverage of the interval, and data that allow none."""

import math

import numpy as np
import pytest

from instruct_ray.evidence.statistics.learning_curve import LearningCurve, fit_learning_curve
from tests.evidence.statistics.simulation import draw_groups

NUM_ROWS = (250, 500, 1000)


def true_rates(exponent: float, error_rate: float) -> list[float]:
    return [error_rate * (rows / NUM_ROWS[-1]) ** exponent for rows in NUM_ROWS]


def draw_correct(rates: list[float], codes: np.ndarray, rng: np.random.Generator) -> list[list[bool]]:
    """Nested models: a row is hard to a degree that it shares in part with its group and between the models."""
    shared, own = rng.random(int(codes.max()) + 1)[codes], rng.random(len(codes))
    difficulty = np.where(rng.random(len(codes)) < 0.5, shared, own)
    models = []
    for rate in rates:
        fresh = rng.random(len(codes))
        models.append(list(np.where(rng.random(len(codes)) < 0.7, difficulty, fresh) >= rate))
    return models


def test_exact_power_law_is_found() -> None:
    correct = [[index >= wrong for index in range(1000)] for wrong in (400, 200, 100)]
    curve = fit_learning_curve(NUM_ROWS, correct, range(1000))
    assert isinstance(curve, LearningCurve)
    assert curve.exponent == pytest.approx(-1)
    assert curve.error_rate == pytest.approx(0.1)
    assert curve.factor == pytest.approx(100)
    assert curve.doubling_gain == pytest.approx(0.05)
    assert 0 < curve.lower < 0.05 < curve.upper <= 0.1


def test_gain_is_never_larger_than_what_is_wrong() -> None:
    correct = [[index >= wrong for index in range(60)] for wrong in (50, 22, 10)]
    curve = fit_learning_curve(NUM_ROWS, correct, range(60))
    assert isinstance(curve, LearningCurve)
    assert curve.upper <= curve.error_rate


def test_more_rows_may_harm() -> None:
    correct = [[index >= wrong for index in range(500)] for wrong in (50, 60, 80)]
    curve = fit_learning_curve(NUM_ROWS, correct, range(500))
    assert isinstance(curve, LearningCurve)
    assert curve.doubling_gain < 0


@pytest.mark.parametrize(
    ("num_wrong", "groups", "reason"),
    [
        ((30, 20, 9), list(range(100)), "fewer than 10 wrong"),
        ((30, 20, 10), [n // 10 for n in range(100)], "10 groups"),
    ],
)
def test_too_little_data_has_no_curve(num_wrong: tuple[int, ...], groups: list[int], reason: str) -> None:
    correct = [[index >= wrong for index in range(100)] for wrong in num_wrong]
    curve = fit_learning_curve(NUM_ROWS, correct, groups)
    assert isinstance(curve, str)
    assert reason in curve


@pytest.mark.parametrize("num_train_rows", [(100, 100, 100), (0, 5, 10), (5, 10)])
def test_wrong_numbers_are_refused(num_train_rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two numbers of rows"):
        fit_learning_curve(num_train_rows, [[True]] * 3, [0])


@pytest.mark.parametrize("kind", ["one", "two", "paraphrases"])
@pytest.mark.parametrize(("num_rows", "error_rate"), [(120, 0.3), (250, 0.15), (500, 0.1), (500, 0.4)])
@pytest.mark.parametrize("exponent", [-0.5, 0.0])
def test_interval_of_the_gain_has_its_coverage(kind: str, num_rows: int, error_rate: float, exponent: float) -> None:
    rng = np.random.default_rng(hash((num_rows, error_rate, exponent, len(kind))) % 2**32)
    rates = true_rates(exponent, error_rate)
    truth = error_rate * (1 - 2**exponent)
    covered = []
    for _ in range(300):
        codes = draw_groups(kind, num_rows, rng)
        curve = fit_learning_curve(NUM_ROWS, draw_correct(rates, codes, rng), codes.tolist())
        if isinstance(curve, LearningCurve):
            covered.append(curve.lower <= truth <= curve.upper)
    share = sum(covered) / len(covered)
    assert share >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / len(covered))
