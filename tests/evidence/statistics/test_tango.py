"""Tango's interval and McNemar's mid-p against published values, and what must hold for every table."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from instruct_ray.evidence.statistics.tango import mcnemar_mid_p, tango_interval, tango_score

Z_95, Z_90 = 1.959963984540054, 1.6448536269514722


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """(only a, only b, all rows)."""
    num_rows = draw(st.integers(1, 600))
    only_a = draw(st.integers(0, num_rows))
    return only_a, draw(st.integers(0, num_rows - only_a)), num_rows


@pytest.mark.parametrize(
    ("table", "lower", "upper"),
    [
        # Bentur 2009 and Cavo 2012 in Fagerland, Lydersen, Laake 2014; the second to four digits in their R package.
        ((1, 7, 21), -0.517, -0.026),
        ((6, 16, 161), -0.1240, -0.0054),
    ],
)
def test_published_intervals(table: tuple[int, int, int], lower: float, upper: float) -> None:
    digits = 4 if table[2] == 161 else 3
    assert tuple(round(bound, digits) for bound in tango_interval(*table, Z_95)) == (lower, upper)


@pytest.mark.parametrize(
    ("table", "quantile", "lower", "upper"),
    [
        # PropCIs 0.3.0, scoreci.mp.
        ((7, 0, 14), Z_95, 0.177033, 0.732008),
        ((0, 0, 14), Z_95, -0.215311, 0.215311),
        ((3, 2, 14), Z_95, -0.261078, 0.388996),
        ((1, 0, 14), Z_95, -0.159262, 0.314687),
        ((5, 5, 16), Z_95, -0.367507, 0.367507),
        ((13, 1, 14), Z_95, 0.370626, 0.974556),
        ((14, 0, 14), Z_95, 0.569378, 1.0),
        ((0, 14, 14), Z_95, -1.0, -0.569378),
        ((10, 3, 50), Z_95, -0.001498, 0.285475),
        ((1, 1, 2), Z_95, -0.810938, 0.810938),
        ((25, 12, 200), Z_95, 0.005636, 0.126941),
        ((7, 0, 14), Z_90, 0.257068, 0.701218),
        ((10, 3, 50), Z_90, 0.023381, 0.260745),
        ((28, 25, 618), Z_90, -0.0148, 0.0247),
    ],
)
def test_intervals_of_propcis(table: tuple[int, int, int], quantile: float, lower: float, upper: float) -> None:
    tolerance = 5e-5 if table[2] == 618 else 2e-6
    assert tango_interval(*table, quantile) == pytest.approx((lower, upper), abs=tolerance)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    # Bentur 2009 and Cavo 2012 in Fagerland, Lydersen, Laake 2013, 2017. Equal counts: 1 - pmf / 2.
    [(1, 7, 0.0390625), (6, 16, 0.034690), (0, 0, 0.5), (1, 1, 0.75)],
)
def test_published_mid_p(only_a: int, only_b: int, p_value: float) -> None:
    assert mcnemar_mid_p(only_a, only_b) == pytest.approx(p_value, abs=5e-7)
    assert mcnemar_mid_p(only_b, only_a) == mcnemar_mid_p(only_a, only_b)


@given(tables(), st.floats(0.5, 4))
def test_swapped_arms_mirror_the_interval(table: tuple[int, int, int], quantile: float) -> None:
    only_a, only_b, num_rows = table
    lower, upper = tango_interval(only_a, only_b, num_rows, quantile)
    mirrored = tango_interval(only_b, only_a, num_rows, quantile)
    assert mirrored == pytest.approx((-upper, -lower), abs=1e-7)


@given(tables(), st.floats(0.5, 4))
def test_bounds_enclose_the_estimate_within_minus_1_and_1(table: tuple[int, int, int], quantile: float) -> None:
    only_a, only_b, num_rows = table
    lower, upper = tango_interval(only_a, only_b, num_rows, quantile)
    assert -1 <= lower <= (only_a - only_b) / num_rows <= upper <= 1
    assert lower < upper


@given(tables(), st.floats(0.5, 3), st.floats(0.1, 1))
def test_more_confidence_is_wider(table: tuple[int, int, int], quantile: float, more: float) -> None:
    narrow, wide = tango_interval(*table, quantile), tango_interval(*table, quantile + more)
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


@given(tables(), st.floats(0.5, 4))
def test_one_more_win_moves_the_interval_up(table: tuple[int, int, int], quantile: float) -> None:
    only_a, only_b, num_rows = table
    assume(only_a + only_b < num_rows)
    before, after = (tango_interval(wins, only_b, num_rows, quantile) for wins in (only_a, only_a + 1))
    assert after[0] >= before[0] - 1e-9 and after[1] >= before[1] - 1e-9


@given(tables(), st.floats(-0.99, 0.99), st.floats(0.5, 4))
def test_the_score_rejects_what_is_outside(table: tuple[int, int, int], difference: float, quantile: float) -> None:
    lower, upper = tango_interval(*table, quantile)
    score = tango_score(*table, difference)
    assume(min(abs(difference - lower), abs(difference - upper)) > 1e-6)
    assert (score < -quantile) == (difference > upper)
    assert (score > quantile) == (difference < lower)


def test_a_score_without_variance() -> None:
    assert tango_score(0, 0, 10, 0.0) == 0
    assert tango_score(10, 0, 10, -1.0 + 1e-300) == math.inf


@pytest.mark.parametrize("table", [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_no_table(table: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no table of paired proportions"):
        tango_interval(*table, Z_95)
