"""How many rows settle a difference of accuracies, and what difference given rows can see."""

import math

from scipy.optimize import brentq
from scipy.stats import norm

POWER = 0.8


def rows_needed(
    difference: float,
    discordant_share: float,
    *,
    margin: float = 0.0,
    design_effect: float = 1.0,
    alpha: float = 0.05,
    power: float = POWER,
) -> int | None:
    """Rows with which the interval of a paired difference excludes the margin, in `power` of the samples.

    Connor 1987 (Biometrics 43:207) for a margin of 0, with Tango's variance under the null hypothesis otherwise; times
    the design effect of groups of several rows.

    Args:
        difference: the true difference of the accuracies, in [-1, 1].
        discordant_share: share of the rows that only one arm answers right. It is at least |difference|.
        margin: the difference to exclude.
        design_effect: 1 + (m - 1) rho for groups of m rows.
        alpha: two-sided level; each bound has half of it.
        power: probability of settling it.

    Returns:
        None if the difference equals the margin: no number of rows settles that.
    """
    distance = abs(difference - margin)
    if distance < 1e-9:
        return None
    share = max(discordant_share, abs(difference), abs(margin))
    null = float(norm.isf(alpha / 2)) * math.sqrt(share - margin**2)
    alternative = float(norm.ppf(power)) * math.sqrt(share - difference**2)
    return math.ceil(design_effect * (null + alternative) ** 2 / distance**2)


def detectable_difference(
    num_rows: int,
    discordant_share: float,
    *,
    design_effect: float = 1.0,
    alpha: float = 0.05,
    power: float = POWER,
) -> float | None:
    """The smallest true difference of accuracies that these rows tell from 0, in `power` of the samples.

    Returns:
        None if they can't even see a difference of 1.
    """
    null, alternative = float(norm.isf(alpha / 2)), float(norm.ppf(power))

    def missing_rows(difference: float) -> float:
        share = max(discordant_share, difference)
        deviation = null * math.sqrt(share) + alternative * math.sqrt(share - difference**2)
        return deviation**2 - num_rows / design_effect * difference**2

    if missing_rows(1.0) > 0:
        return None
    # At 0 there is a second root if no row is discordant.
    return float(brentq(missing_rows, 1e-9, 1.0, xtol=1e-9))
