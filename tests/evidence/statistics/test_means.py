"""Differences of mean scores: t where the arms differ in enough groups, else a bound that holds, else none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from instruct_ray.evidence.statistics.difference import Method
from instruct_ray.evidence.statistics.means import paired_mean_difference

scores = st.floats(0, 1)
rows = st.lists(st.tuples(scores, scores, st.integers(0, 60)), min_size=1, max_size=120)


def test_one_row_a_group_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(50).tolist(), rng.random(50).tolist()
    difference = paired_mean_difference(a, b, range(50), within_0_1=True)
    expected = ttest_rel(a, b)
    interval = expected.confidence_interval()
    assert difference.method is Method.CLUSTER_T
    assert (difference.lower, difference.upper) == pytest.approx((interval.low, interval.high))
    assert difference.p_value == pytest.approx(expected.pvalue)


def test_few_differing_groups() -> None:
    a, b = [0.5] * 90 + [0.7] * 10, [0.5] * 100
    bounded = paired_mean_difference(a, b, range(100), within_0_1=True)
    assert bounded.method is Method.BOUNDED
    assert bounded.lower is not None and bounded.upper is not None
    assert bounded.lower < 0 < bounded.estimate < bounded.upper
    unbounded = paired_mean_difference(a, b, range(100), within_0_1=False)
    assert unbounded.method is Method.TOO_FEW_DIFFERENCES and unbounded.lower is None
    assert unbounded.estimate == pytest.approx(0.02)


def test_equal_scores_have_an_interval_with_a_width() -> None:
    equal = paired_mean_difference([0.5] * 100, [0.5] * 100, range(100), within_0_1=True)
    assert equal.lower is not None and equal.lower < -0.03
    shifted = paired_mean_difference([3.0] * 100, [2.0] * 100, range(100), within_0_1=False)
    assert shifted.method is Method.TOO_FEW_DIFFERENCES and shifted.estimate == 1


def test_too_few_and_wrong() -> None:
    assert paired_mean_difference([], [], [], within_0_1=True).method is Method.NO_ROWS
    assert paired_mean_difference([1.0] * 19, [0.0] * 19, range(19), within_0_1=True).method is Method.TOO_FEW_GROUPS
    with pytest.raises(ValueError, match="not finite"):
        paired_mean_difference([float("nan")], [0.0], ["a"], within_0_1=False)
    with pytest.raises(ValueError, match=r"not within \[0, 1\]"):
        paired_mean_difference([2.0], [0.0], ["a"], within_0_1=True)


@given(rows)
def test_swapped_arms_mirror_the_difference(rows: list[tuple[float, float, int]]) -> None:
    a, b, groups = zip(*rows, strict=True)
    forward = paired_mean_difference(a, b, groups, within_0_1=True)
    backward = paired_mean_difference(b, a, groups, within_0_1=True)
    assert forward.method is backward.method and forward.estimate == pytest.approx(-backward.estimate)
    if forward.lower is not None and forward.upper is not None:
        assert (backward.lower, backward.upper) == pytest.approx((-forward.upper, -forward.lower), abs=1e-7)
        assert -1 <= forward.lower <= forward.upper <= 1
