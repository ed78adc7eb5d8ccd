"""The accuracy of one arm, and the difference of the accuracies of two arms on the same rows, with their intervals.

Groups of several rows: scores, not t. A cluster-robust t interval has a coverage down to 0.35 where few rows are
discordant (60 rows, 2 % discordant), and is [0, 0] where none is. Tango's and Wilson's score intervals of the effective
number of rows, with the t quantile of the groups, keep theirs (tests/evidence/statistics/test_coverage.py).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, norm, t

from instruct_ray.evidence.statistics.clusters import (
    MIN_GROUPS,
    cautious_design_effect,
    check_lengths,
    group_codes,
    grouped_mean,
)
from instruct_ray.evidence.statistics.difference import Difference, Method
from instruct_ray.evidence.statistics.tango import mcnemar_mid_p, tango_interval, tango_score


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one arm."""

    estimate: float
    """Fraction of the rows that are right; 0 without rows."""
    lower: float | None
    """Lower bound of the interval; None where there are no rows, or too few groups of several rows."""
    upper: float | None
    num_rows: int
    num_groups: int


@dataclass(frozen=True)
class _Table:
    """The paired table of two arms, as effective numbers of rows, and the distribution of its score statistic."""

    only_a: float
    only_b: float
    num_rows: float
    degrees: float
    """Degrees of freedom; infinite if every group has one row."""


def accuracy_interval(correct: Sequence[bool], groups: Sequence[Hashable], *, confidence: float = 0.95) -> Accuracy:
    """Wilson's score interval of an accuracy.

    One row a group: as modified near 0 and 1 by Brown, Cai, DasGupta 2001 (Stat Sci 16:101). Several: the interval of
    the effective number of rows with the t quantile of the groups, as Korn and Graubard 1998 (Surv Methodol 24:193) do
    with that of Clopper and Pearson.

    Args:
        correct: whether each row is right, shape [rows].
        groups: the group of each row, shape [rows].
        confidence: of the interval.
    """
    check_lengths(correct, groups)
    right, codes = np.asarray(correct, dtype=np.float64), group_codes(groups)
    num_rows, num_groups = len(right), len(set(codes.tolist()))
    if not num_rows:
        return Accuracy(0.0, None, None, 0, 0)
    estimate = float(right.mean())
    if num_groups == num_rows:
        lower, upper = _modified_wilson(int(right.sum()), num_rows, confidence)
    elif num_groups < MIN_GROUPS:
        return Accuracy(estimate, None, None, num_rows, num_groups)
    else:
        mean = grouped_mean(right, codes)
        quantile = float(t.isf((1 - confidence) / 2, mean.degrees))
        num_unusual = len(set(codes[right != (estimate >= 0.5)].tolist()))
        lower, upper = _wilson(estimate, num_rows / cautious_design_effect(mean, num_unusual), quantile)
    return Accuracy(estimate, lower, upper, num_rows, num_groups)


def paired_accuracy_difference(
    correct_a: Sequence[bool], correct_b: Sequence[bool], groups: Sequence[Hashable], *, confidence: float = 0.95
) -> Difference:
    """The difference of two accuracies on the same rows: Tango's score interval.

    One row a group: with McNemar's mid-p. Several: both of the effective number of rows, with the t distribution of the
    groups; "too few groups" below 20.

    Args:
        correct_a: whether arm a is right, shape [rows].
        correct_b: whether arm b is right, shape [rows].
        groups: the group of each row, shape [rows].
        confidence: of the interval.

    Raises:
        ValueError: the arguments have different lengths.
    """
    check_lengths(correct_a, correct_b, groups)
    only_a, only_b = _count_discordant(correct_a, correct_b)
    num_rows, num_groups = len(groups), len(set(groups))
    estimate = (only_a - only_b) / num_rows if num_rows else 0.0
    counts = {"num_rows": num_rows, "num_groups": num_groups, "num_discordant": only_a + only_b}
    table = _effective_table(correct_a, correct_b, groups)
    if not isinstance(table, _Table):
        return Difference(estimate, None, None, None, **counts, method=table)
    quantile = float(t.isf((1 - confidence) / 2, table.degrees))
    lower, upper = tango_interval(table.only_a, table.only_b, table.num_rows, quantile)
    if num_groups == num_rows:
        return Difference(estimate, lower, upper, mcnemar_mid_p(only_a, only_b), **counts, method=Method.TANGO)
    score = tango_score(table.only_a, table.only_b, table.num_rows, 0.0)
    return Difference(
        estimate,
        lower,
        upper,
        2 * float(t.sf(abs(score), table.degrees)),
        **counts,
        method=Method.TANGO_GROUPS,
        design_effect=num_rows / table.num_rows,
    )


def p_value_not_below(
    correct_a: Sequence[bool], correct_b: Sequence[bool], groups: Sequence[Hashable], margin: float
) -> float | None:
    """One-sided p value of "accuracy of a - accuracy of b >= margin", by Tango's score test.

    It is at most (1 - confidence) / 2 exactly where the upper bound of `paired_accuracy_difference` is at most the
    margin.

    Returns:
        None where there is no interval either.
    """
    check_lengths(correct_a, correct_b, groups)
    table = _effective_table(correct_a, correct_b, groups)
    if not isinstance(table, _Table):
        return None
    return float(t.cdf(tango_score(table.only_a, table.only_b, table.num_rows, margin), table.degrees))


def _effective_table(
    correct_a: Sequence[bool], correct_b: Sequence[bool], groups: Sequence[Hashable]
) -> _Table | Method:
    """The table of two arms, or why there is none."""
    only_a, only_b = _count_discordant(correct_a, correct_b)
    num_rows, num_groups = len(groups), len(set(groups))
    if not num_rows:
        return Method.NO_ROWS
    if num_groups == num_rows:
        return _Table(only_a, only_b, num_rows, math.inf)
    if num_groups < MIN_GROUPS:
        return Method.TOO_FEW_GROUPS
    differences = np.asarray(correct_a, dtype=np.float64) - np.asarray(correct_b, dtype=np.float64)
    codes = group_codes(groups)
    mean = grouped_mean(differences, codes)
    effect = cautious_design_effect(mean, len(set(codes[differences != 0].tolist())))
    return _Table(only_a / effect, only_b / effect, num_rows / effect, mean.degrees)


def _count_discordant(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> tuple[int, int]:
    """Rows that only a, and that only b answers right."""
    right_a, right_b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    return int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())


def _wilson(share: float, num_rows: float, quantile: float) -> tuple[float, float]:
    """Wilson 1927; scipy's takes whole numbers of rows only."""
    squared = quantile**2
    center = (share + squared / (2 * num_rows)) / (1 + squared / num_rows)
    variance = share * (1 - share) / num_rows + squared / (4 * num_rows**2)
    half = quantile * math.sqrt(variance) / (1 + squared / num_rows)
    # Rounding may leave a bound on the wrong side of a share of 0 or 1.
    return min(max(center - half, 0.0), share), max(min(center + half, 1.0), share)


def _modified_wilson(num_right: int, num_rows: int, confidence: float) -> tuple[float, float]:
    lower, upper = _wilson(num_right / num_rows, num_rows, float(norm.isf((1 - confidence) / 2)))
    # Near 0 and 1 Wilson's coverage falls to 0.84; a Poisson bound takes its place there.
    most = 2 if num_rows <= 50 else 3
    if 1 <= num_right <= most:
        lower = min(lower, _poisson_bound(num_right, num_rows, confidence))
    if 1 <= num_rows - num_right <= most:
        upper = max(upper, 1 - _poisson_bound(num_rows - num_right, num_rows, confidence))
    return lower, upper


def _poisson_bound(count: int, num_rows: int, confidence: float) -> float:
    return float(chi2.ppf(1 - confidence, 2 * count)) / (2 * num_rows)
