"""Tango's score test and interval of the difference of two paired proportions, and McNemar's mid-p test.

Sources: Tango 1998 (Stat Med 17:891), and Fagerland, Lydersen, Laake 2014 (Stat Med 33:2850), for the interval; the
same authors 2013 (BMC Med Res Methodol 13:91) for mid-p.
"""

import math

from scipy.optimize import brentq
from scipy.stats import binom


def tango_score(only_a: float, only_b: float, num_rows: float, difference: float) -> float:
    """The score statistic of "accuracy of a - accuracy of b = difference"; standard normal if that is true.

    Args:
        only_a: rows that only a answers right. Counts may be fractional: effective numbers of rows, or summed scores.
        only_b: rows that only b answers right.
        num_rows: all rows, above 0.
        difference: in (-1, 1).
    """
    excess = only_a - only_b - num_rows * difference
    deviation = _deviation(only_a, only_b, num_rows, difference)
    if deviation == 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / deviation


def tango_interval(only_a: float, only_b: float, num_rows: float, quantile: float) -> tuple[float, float]:
    """The differences that the score test does not reject.

    Args:
        only_a: rows that only a answers right; may be fractional.
        only_b: rows that only b answers right; may be fractional.
        num_rows: all rows, above 0.
        quantile: bound of the absolute score statistic, 1.96 for 95 %.

    Returns:
        Lower and upper bound, within [-1, 1].

    Raises:
        ValueError: the counts are negative or exceed `num_rows`, or there are no rows.
    """
    # Sums of fractions exceed the number of rows by rounding.
    if num_rows <= 0 or min(only_a, only_b) < 0 or only_a + only_b > num_rows * (1 + 1e-9):
        raise ValueError(f"no table of paired proportions: {only_a} + {only_b} discordant of {num_rows} rows")
    return -_upper_bound(only_b, only_a, num_rows, quantile), _upper_bound(only_a, only_b, num_rows, quantile)


def mcnemar_mid_p(only_a: int, only_b: int) -> float:
    """Two-sided mid-p value of McNemar's test that both arms are right equally often; 1 without discordant rows."""
    num_discordant = only_a + only_b
    smaller = min(only_a, only_b)
    point = float(binom.pmf(smaller, num_discordant, 0.5))
    if only_a == only_b:
        return 1 - point / 2
    return float(2 * binom.cdf(smaller, num_discordant, 0.5)) - point


def _upper_bound(only_a: float, only_b: float, num_rows: float, quantile: float) -> float:
    excluded = quantile**2 / (num_rows + quantile**2)
    estimate = (only_a - only_b) / num_rows
    # Without variance the equation below also has a root at the estimate; these are the limits of the other one.
    if only_a + only_b == 0:
        return excluded
    if estimate < -1 + 1e-9:
        return 2 * excluded - 1
    if estimate > 1 - 1e-9:
        return 1.0

    def distance(difference: float) -> float:
        excess = only_a - only_b - num_rows * difference
        return excess + quantile * _deviation(only_a, only_b, num_rows, difference)

    return float(brentq(distance, estimate, 1.0, xtol=1e-10))


def _deviation(only_a: float, only_b: float, num_rows: float, difference: float) -> float:
    """Standard deviation of `only_a - only_b` if the true difference is `difference`, by maximum likelihood."""
    linear = (2 * num_rows - only_a + only_b) * difference - only_a - only_b
    constant = -only_b * difference * (1 - difference)
    # The share of rows that only b answers right; rounding may leave it just below 0.
    root = math.sqrt(max(linear**2 - 8 * num_rows * constant, 0))
    share_only_b = max((root - linear) / (4 * num_rows), 0, -difference)
    return math.sqrt(max(num_rows * (2 * share_only_b + difference * (1 - difference)), 0))
