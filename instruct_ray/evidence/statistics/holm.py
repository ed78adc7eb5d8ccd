"""Holm's correction of p values for several tests (Holm 1979, Scand J Stat 6:65).

Not `multipletests` of statsmodels, which gives the same: it collects garbage at every call, which takes up to a second.
"""

from collections.abc import Sequence

import numpy as np


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p values, in the given order; those at most alpha are significant at a family-wise alpha."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    # The smallest counts for all tests, the next for one less; none is below the one before it.
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * factors).clip(max=1)
    return [float(value) for value in adjusted]
