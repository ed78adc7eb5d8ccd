"""The difference of the mean scores of two arms on the same rows, such as token F1, with its interval."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from instruct_ray.evidence.statistics.clusters import (
    MIN_GROUPS,
    GroupedMean,
    cautious_design_effect,
    check_lengths,
    group_codes,
    grouped_mean,
)
from instruct_ray.evidence.statistics.difference import Difference, Method
from instruct_ray.evidence.statistics.tango import tango_interval, tango_score


def paired_mean_difference(
    values_a: Sequence[float],
    values_b: Sequence[float],
    groups: Sequence[Hashable],
    *,
    within_0_1: bool,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two means on the same rows: a t interval with cluster-robust (CR2) variance.

    A t interval is too narrow where the arms differ in few groups, and has no width where they differ in none. Below 20
    such groups scores within [0, 1] get Tango's interval of the summed gains and losses. It is wide enough, since a
    gain of x has at most the variance of a gain of 1 with probability x. Other values get none.

    Args:
        values_a: scores of arm a, shape [rows].
        values_b: scores of arm b, shape [rows].
        groups: the group of each row, shape [rows].
        within_0_1: whether the scores can't leave [0, 1], as token F1; not whether these happen not to.
        confidence: of the interval.

    Returns:
        Without an interval if there are fewer than 20 groups, or, for scores that may leave [0, 1], fewer than 20 in
        which the arms differ.

    Raises:
        ValueError: the arguments have different lengths, a value is not finite, or not within [0, 1] as said.
    """
    check_lengths(values_a, values_b, groups)
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    _check_values(np.concatenate([a, b]), within_0_1)
    differences, codes = a - b, group_codes(groups)
    num_rows, num_groups = len(codes), len(set(codes.tolist()))
    counts = {"num_rows": num_rows, "num_groups": num_groups, "num_discordant": int(np.count_nonzero(differences))}
    if num_groups < MIN_GROUPS:
        method = Method.TOO_FEW_GROUPS if num_rows else Method.NO_ROWS
        estimate = float(differences.mean()) if num_rows else 0.0
        return Difference(estimate, None, None, None, **counts, method=method)
    mean = grouped_mean(differences, codes)
    num_differing = len(np.unique(codes[differences != 0]))
    if num_differing < MIN_GROUPS:
        if not within_0_1:
            return Difference(mean.mean, None, None, None, **counts, method=Method.TOO_FEW_DIFFERENCES)
        effect = cautious_design_effect(mean, num_differing)
        return _bounded_difference(differences, mean, effect, counts, confidence)
    half = float(t.isf((1 - confidence) / 2, mean.degrees)) * mean.standard_error
    if half == 0:
        # All differences are equal, so their variation is unknown.
        return Difference(mean.mean, None, None, None, **counts, method=Method.TOO_FEW_DIFFERENCES)
    lower, upper = mean.mean - half, mean.mean + half
    p_value = 2 * float(t.sf(abs(mean.mean) / mean.standard_error, mean.degrees))
    if within_0_1:
        lower, upper = max(lower, -1.0), min(upper, 1.0)
    return Difference(
        mean.mean, lower, upper, p_value, **counts, method=Method.CLUSTER_T, design_effect=mean.design_effect
    )


def _bounded_difference(
    differences: NDArray[np.float64], mean: GroupedMean, effect: float, counts: dict[str, int], confidence: float
) -> Difference:
    """Tango's interval of the summed gains and losses, of the effective number of rows."""
    gains = float(differences.clip(min=0).sum()) / effect
    losses = float(-differences.clip(max=0).sum()) / effect
    num_rows = len(differences) / effect
    lower, upper = tango_interval(gains, losses, num_rows, float(t.isf((1 - confidence) / 2, mean.degrees)))
    p_value = 2 * float(t.sf(abs(tango_score(gains, losses, num_rows, 0.0)), mean.degrees))
    return Difference(mean.mean, lower, upper, p_value, **counts, method=Method.BOUNDED, design_effect=effect)


def _check_values(values: NDArray[np.float64], within_0_1: bool) -> None:
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    if within_0_1 and len(values) and (values.min() < 0 or values.max() > 1):
        raise ValueError(f"scores from {values.min()} to {values.max()} are not within [0, 1]")
