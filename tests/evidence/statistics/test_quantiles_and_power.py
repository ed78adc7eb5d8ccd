"""Quantile intervals, and rows needed and seen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.evidence.statistics.power import detectable_difference, rows_needed
from instruct_ray.evidence.statistics.quantiles import quantile_interval


def test_p95_needs_72_values() -> None:
    few, enough = (quantile_interval([float(value) for value in range(count)], 0.95) for count in (71, 72))
    assert (few.lower, few.upper, few.num_needed) == (None, None, 72) and few.estimate == pytest.approx(66.5)
    assert enough.lower is not None and enough.upper == 71 and enough.num_needed == 72
    assert quantile_interval([1.0] * 5, 0.5).num_needed == 6
    assert quantile_interval([], 0.5).estimate is None
    with pytest.raises(ValueError, match="lies in"):
        quantile_interval([1.0], 1.0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.sampled_from([0.05, 0.5, 0.9, 0.95, 0.99]))
def test_a_quantile_interval_needs_exactly_num_needed_values(values: list[float], probability: float) -> None:
    found = quantile_interval(values, probability)
    assert (found.lower is not None) == (len(values) >= found.num_needed)
    if found.lower is not None and found.upper is not None and found.estimate is not None:
        assert found.lower <= found.estimate <= found.upper


@pytest.mark.parametrize(
    ("share", "difference", "rows"),
    # Connor's formula.
    [(0.1, 0.05, 312), (0.1, 0.03, 870), (0.2, 0.05, 626), (0.2, 0.1, 155), (0.05, 0.03, 434)],
)
def test_rows_needed_by_connor(share: float, difference: float, rows: int) -> None:
    assert rows_needed(difference, share) == rows == rows_needed(-difference, share)
    assert rows_needed(difference, share, design_effect=2.0) in (2 * rows, 2 * rows - 1)


def test_no_number_of_rows_settles_a_difference_at_the_margin() -> None:
    assert rows_needed(0.02, 0.1, margin=0.02) is None
    assert (rows_needed(0.03, 0.1, margin=0.02) or 0) > (rows_needed(0.05, 0.1, margin=0.02) or math.inf)
    # The arms always agree.
    assert (rows_needed(0.0, 0.0, margin=0.02) or 0) >= 188


@given(st.integers(8, 5000), st.floats(0, 1))
def test_the_detectable_difference_needs_the_rows(num_rows: int, share: float) -> None:
    detectable = detectable_difference(num_rows, share)
    assert detectable is not None and 0 < detectable <= 1
    needed = rows_needed(detectable, share)
    assert needed is not None and num_rows <= needed + 1 and needed <= num_rows + 1


def test_few_rows_see_nothing() -> None:
    assert detectable_difference(3, 0.1) is None
    assert detectable_difference(246, 0.1) == pytest.approx(0.056, abs=0.001)
    assert (detectable_difference(246, 0.1, design_effect=3.0) or 0) > 0.09
