"""Accuracies and their differences: which method, its borders, and agreement of interval and test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from instruct_ray.evidence.statistics.accuracy import accuracy_interval, p_value_not_below, paired_accuracy_difference
from instruct_ray.evidence.statistics.difference import Method

bools = st.booleans()
rows = st.lists(st.tuples(bools, bools, st.integers(0, 40)), min_size=1, max_size=150)


def test_one_row_a_group() -> None:
    difference = paired_accuracy_difference(
        [True] * 7 + [False] * 14, [False] * 6 + [True] * 2 + [False] * 13, range(21)
    )
    assert difference.method is Method.TANGO
    assert (difference.num_rows, difference.num_groups, difference.num_discordant) == (21, 21, 7)
    assert difference.estimate == pytest.approx(5 / 21)
    assert difference.p_value == pytest.approx(0.125 - 7 / 2**7)


def test_groups_of_several_rows_are_worth_less() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random(60) < 0.7).repeat(5).tolist(), (rng.random(60) < 0.5).repeat(5).tolist()
    single = paired_accuracy_difference(a, b, range(300))
    grouped = paired_accuracy_difference(a, b, [index // 5 for index in range(300)])
    assert grouped.method is Method.TANGO_GROUPS and grouped.num_groups == 60
    assert grouped.design_effect == pytest.approx(5, rel=0.02)
    assert (
        single.lower is not None
        and single.upper is not None
        and grouped.lower is not None
        and grouped.upper is not None
    )
    assert grouped.lower < single.lower < single.upper < grouped.upper
    # About as the 60 distinct rows alone.
    distinct = paired_accuracy_difference(a[::5], b[::5], range(60))
    assert distinct.lower == pytest.approx(grouped.lower, abs=0.01)


def test_copies_of_a_group_say_nothing_new() -> None:
    right = [True, False] * 30
    equal = paired_accuracy_difference(right, right, [index // 2 for index in range(60)])
    assert equal.upper is not None and equal.upper > paired_accuracy_difference(right, right, range(60)).upper  # type: ignore[operator]
    assert equal.p_value == 1


def test_too_few() -> None:
    assert paired_accuracy_difference([], [], []).method is Method.NO_ROWS
    few = paired_accuracy_difference([True] * 40, [False] * 40, [index % 19 for index in range(40)])
    assert few.method is Method.TOO_FEW_GROUPS
    assert (few.lower, few.upper, few.p_value, few.estimate) == (None, None, None, 1.0)
    assert p_value_not_below([True] * 40, [False] * 40, [index % 19 for index in range(40)], 0.02) is None
    # A single row has an interval, and it says nearly nothing.
    one = paired_accuracy_difference([True], [False], ["a"])
    assert one.lower is not None and one.lower < -0.5 and one.upper == 1


def test_lengths_must_be_equal() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        paired_accuracy_difference([True], [True, False], ["a", "b"])


@given(rows)
def test_swapped_arms_mirror_the_difference(rows: list[tuple[bool, bool, int]]) -> None:
    a, b, groups = zip(*rows, strict=True)
    forward, backward = paired_accuracy_difference(a, b, groups), paired_accuracy_difference(b, a, groups)
    assert forward.estimate == -backward.estimate and forward.method is backward.method
    if forward.lower is not None and forward.upper is not None:
        assert (backward.lower, backward.upper) == pytest.approx((-forward.upper, -forward.lower), abs=1e-7)
        assert forward.p_value == pytest.approx(backward.p_value)
        assert -1 <= forward.lower <= forward.estimate <= forward.upper <= 1


@given(rows, st.floats(-0.5, 0.5))
def test_the_test_and_the_bound_agree(rows: list[tuple[bool, bool, int]], margin: float) -> None:
    a, b, groups = zip(*rows, strict=True)
    upper, p_value = paired_accuracy_difference(a, b, groups).upper, p_value_not_below(a, b, groups, margin)
    if upper is None or p_value is None:
        assert upper is None and p_value is None
    elif abs(upper - margin) > 1e-6:
        assert (p_value < 0.025) == (upper < margin)


@given(st.integers(5, 300), st.data())
def test_wilson_is_that_of_scipy_away_from_0_and_1(num_rows: int, data: st.DataObject) -> None:
    num_right = data.draw(st.integers(0, num_rows))
    found = accuracy_interval([index < num_right for index in range(num_rows)], range(num_rows))
    expected = binomtest(num_right, num_rows).proportion_ci(method="wilson")
    assert found.lower is not None and found.upper is not None
    if min(num_right, num_rows - num_right) > 3:
        assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high))
    assert found.lower <= expected.low + 1e-12 and expected.high - 1e-12 <= found.upper
    assert 0 <= found.lower <= num_right / num_rows <= found.upper <= 1


def test_accuracy_of_groups() -> None:
    right = [True] * 80 + [False] * 20
    groups = [index // 4 for index in range(100)]
    single, grouped = accuracy_interval(right, range(100)), accuracy_interval(right, groups)
    assert grouped.lower is not None and single.lower is not None and grouped.lower < single.lower - 0.05
    assert accuracy_interval(right, [index // 10 for index in range(100)]).lower is None
    assert accuracy_interval([], []).lower is None
