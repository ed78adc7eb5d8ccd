"""The interval of a quantile, such as p95 latency, by order statistics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import quantile_test


@dataclass(frozen=True)
class Quantile:
    """A quantile of measured values, in their unit."""

    estimate: float | None
    """None without values."""
    lower: float | None
    """Lower bound; None where there are too few values for a two-sided interval."""
    upper: float | None
    num_values: int
    num_needed: int
    """The number of values that a two-sided interval needs: 72 for p95, 6 for p50, at 95 %."""


def quantile_interval(values: Sequence[float], probability: float, *, confidence: float = 0.95) -> Quantile:
    """The distribution-free interval of a quantile. The values must be independent.

    Args:
        values: measured values, shape [values].
        probability: which quantile, in (0, 1): 0.95 for p95.
        confidence: of the interval; the coverage is at least this.

    Raises:
        ValueError: the probability is not in (0, 1).
    """
    if not 0 < probability < 1:
        raise ValueError(f"a quantile's probability lies in (0, 1), not {probability}")
    needed = _num_needed(probability, confidence)
    if not values:
        return Quantile(None, None, None, 0, needed)
    estimate = float(np.quantile(np.asarray(values, dtype=np.float64), probability))
    if len(values) < needed:
        return Quantile(estimate, None, None, len(values), needed)
    # The quantile under the null hypothesis has no influence on the interval.
    test = quantile_test(np.asarray(values, dtype=np.float64), q=estimate, p=probability)
    interval = test.confidence_interval(confidence)
    return Quantile(estimate, float(interval.low), float(interval.high), len(values), needed)


def _num_needed(probability: float, confidence: float) -> int:
    """The smallest number of values whose extremes miss the quantile with probability (1 - confidence) / 2 at most."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(probability, 1 - probability)))
