"""The difference of macro F1: scikit-learn's estimate, and where there is no interval."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from instruct_ray.evidence.scoring.label_task import macro_f1
from instruct_ray.evidence.statistics.difference import Difference, Method
from instruct_ray.evidence.statistics.macro_f1 import paired_macro_f1_difference


def _answers(accuracy: float, expected: list[str], seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    other = rng.choice(["a", "b", "c", "outside"], len(expected))
    return [target if rng.random() < accuracy else str(wrong) for target, wrong in zip(expected, other, strict=True)]


def _compare(accuracy_a: float, accuracy_b: float, num_rows: int = 200) -> tuple[Difference, float]:
    expected = np.random.default_rng(9).choice(["a", "b", "c"], num_rows, p=[0.6, 0.3, 0.1]).tolist()
    a, b = _answers(accuracy_a, expected, 1), _answers(accuracy_b, expected, 2)
    scores = [f1_score(expected, arm, labels=["a", "b", "c"], average="macro") for arm in (a, b)]
    assert macro_f1(a, expected) == pytest.approx(scores[0])
    return paired_macro_f1_difference(a, b, expected, range(num_rows)), scores[0] - scores[1]


def test_the_estimate_is_that_of_scikit_learn() -> None:
    difference, expected = _compare(0.9, 0.6)
    assert difference.estimate == pytest.approx(expected)
    assert difference.method is Method.JACKKNIFE_T
    assert difference.lower is not None and 0 < difference.lower < difference.estimate
    assert difference.p_value is not None and difference.p_value < 0.001


def test_too_few() -> None:
    assert _compare(0.99, 1.0)[0].method is Method.TOO_FEW_DIFFERENCES
    assert _compare(0.5, 0.5, 19)[0].method is Method.TOO_FEW_GROUPS
    expected = ["a"] * 99 + ["b"]
    rare = paired_macro_f1_difference(["a"] * 100, ["b"] * 100, expected, range(100))
    assert rare.method is Method.TOO_FEW_ROWS_PER_LABEL and rare.lower is None
    assert paired_macro_f1_difference([], [], [], []).method is Method.NO_ROWS


def test_arms_without_any_variation_have_no_interval() -> None:
    expected = ["low", "high"] * 30
    difference = paired_macro_f1_difference(expected, ["I can't tell"] * 60, expected, range(60))
    assert (difference.estimate, difference.lower) == (1.0, None)
    assert difference.method is Method.TOO_FEW_DIFFERENCES


def test_swapped_arms_mirror_the_difference() -> None:
    expected = ["a", "b", "c"] * 60
    a, b = _answers(0.8, expected, 1), _answers(0.6, expected, 2)
    groups = [index // 3 for index in range(180)]
    forward, backward = (paired_macro_f1_difference(x, y, expected, groups) for x, y in ((a, b), (b, a)))
    assert forward.lower is not None and forward.upper is not None
    assert (backward.lower, backward.upper) == pytest.approx((-forward.upper, -forward.lower))
