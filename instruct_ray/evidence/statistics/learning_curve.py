"""What more training rows would bring, from models that were tuned on parts of them. Pure.

The error rate is fitted by a power of the number of training rows, which it follows for language models over orders of
magnitude (Hestness et al. 2017, arXiv 1712.00409). All models answer the same held-out rows, so the interval comes from
one influence value a row, whose variance is that of related rows (`clusters`).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from instruct_ray.evidence.statistics.clusters import MIN_GROUPS, check_lengths, group_codes, grouped_mean

# With fewer wrong answers at a point, the logarithm of its error rate is too coarse for the interval.
MIN_ERRORS = 10


@dataclass(frozen=True)
class LearningCurve:
    """The fit `error rate = factor * rows ** exponent`."""

    exponent: float
    factor: float
    error_rate: float
    """That the fit gives for the largest number of training rows."""
    doubling_gain: float
    """Gain in accuracy that twice as many training rows should bring, as a fraction; negative if more rows harm."""
    lower: float
    """Lower bound of the gain."""
    upper: float
    """Upper bound of the gain."""


def fit_learning_curve(
    num_train_rows: Sequence[int],
    correct: Sequence[Sequence[bool]],
    groups: Sequence[Hashable],
    *,
    confidence: float = 0.95,
) -> LearningCurve | str:
    """Fit the curve to models that were tuned on different numbers of training rows.

    Args:
        num_train_rows: training rows of each model, shape [models].
        correct: whether each model is right, shape [models, held-out rows].
        groups: the group of each held-out row, shape [held-out rows].
        confidence: of the interval of the gain.

    Returns:
        The curve, or a sentence that says why there is none.

    Raises:
        ValueError: fewer than two numbers of training rows, a number below 1, or rows of different lengths.
    """
    check_lengths(groups, *correct)
    if len(correct) != len(num_train_rows) or len(set(num_train_rows)) < 2 or min(num_train_rows) < 1:
        raise ValueError(f"a curve needs models of at least two numbers of rows, not {list(num_train_rows)}")
    codes = group_codes(groups)
    num_groups = len(set(codes.tolist()))
    if num_groups < MIN_GROUPS:
        return f"the held-out rows come in {num_groups} groups of related rows, and an interval needs {MIN_GROUPS}"
    wrong = 1.0 - np.asarray(correct, dtype=np.float64)
    if wrong.sum(axis=1).min() < MIN_ERRORS:
        return f"a model has fewer than {MIN_ERRORS} wrong answers, so these held-out rows can't show what more brings"
    return _fit(np.log(num_train_rows), wrong, codes, confidence)


def _fit(
    log_rows: NDArray[np.float64], wrong: NDArray[np.float64], codes: NDArray[np.intp], confidence: float
) -> LearningCurve:
    rates = wrong.mean(axis=1)
    deviations = log_rows - log_rows.mean()
    slope_weights = deviations / (deviations**2).sum()
    # The fitted logarithm at the largest number of rows is the mean plus the slope times its distance.
    end_weights = 1 / len(rates) + slope_weights * deviations.max()
    exponent = float(slope_weights @ np.log(rates))
    error_rate = float(np.exp(end_weights @ np.log(rates)))
    ratio = 2.0**exponent
    gain = error_rate * (1 - ratio)
    # How much each held-out row moves the logarithms of the rates, the exponent and the gain; shape [held-out rows].
    log_influence = wrong / rates[:, None] - 1
    influence = gain * (end_weights @ log_influence) - error_rate * ratio * math.log(2) * (
        slope_weights @ log_influence
    )
    mean = grouped_mean(influence, codes)
    half = float(t.isf((1 - confidence) / 2, mean.degrees)) * mean.standard_error
    factor = error_rate / math.exp(exponent * float(log_rows.max()))
    # All wrong answers of the largest model are the most that can be gained.
    return LearningCurve(
        exponent, factor, error_rate, gain, max(gain - half, error_rate - 1), min(gain + half, error_rate)
    )
