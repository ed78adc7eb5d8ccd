"""The difference of the macro F1 of two arms on the same rows, with its interval: a jackknife over groups.

Not a bootstrap: its BCa intervals were too narrow, with a coverage of 0.88 for 30 rows of 3 labels and 0.91 for 60,
where the jackknife had 0.95. The jackknife also gives the same numbers every time.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from instruct_ray.evidence.metrics import normalize
from instruct_ray.evidence.scoring.label_task import encode_labels
from instruct_ray.evidence.statistics.clusters import (
    MIN_GROUPS,
    check_lengths,
    degrees_of_freedom,
    group_codes,
)
from instruct_ray.evidence.statistics.difference import Difference, Method

MIN_ROWS_PER_LABEL = 3
# With 20 to 30 groups in which the arms differ, coverage fell to 0.915.
MIN_DIFFERING_GROUPS = 30
# A standard error below is rounding of zero.
MIN_ERROR = 1e-12


def paired_macro_f1_difference(
    answers_a: Sequence[str],
    answers_b: Sequence[str],
    expected: Sequence[str],
    groups: Sequence[Hashable],
    *,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two macro F1 over the expected labels, as `label_task.macro_f1`.

    One group after the other is left out (Tukey 1958), with a t interval as `paired_mean_difference` has.

    Args:
        answers_a: answers of arm a, shape [rows].
        answers_b: answers of arm b, shape [rows].
        expected: the labels, shape [rows].
        groups: the group of each row, shape [rows].
        confidence: of the interval.

    Returns:
        Without an interval if there are fewer than 20 groups, fewer than MIN_DIFFERING_GROUPS in which the answers of
        the arms differ, or a label of fewer than MIN_ROWS_PER_LABEL rows.

    Raises:
        ValueError: the arguments have different lengths.
    """
    check_lengths(answers_a, answers_b, expected, groups)
    if not expected:
        return Difference(0.0, None, None, None, 0, 0, 0, Method.NO_ROWS)
    codes = group_codes(groups)
    labels = sorted({normalize(text) for text in expected})
    target, a, b = (encode_labels(texts, labels) for texts in (expected, answers_a, answers_b))
    table = _group_counts(target, a, b, codes, len(labels))
    estimate = float(_macro_difference(table.sum(axis=0)))
    counts = {"num_rows": len(codes), "num_groups": len(table), "num_discordant": int((a != b).sum())}
    missing = _find_missing(codes, target, a != b)
    if missing is not None:
        return Difference(estimate, None, None, None, **counts, method=missing)
    error = _jackknife_error(table)
    if error < MIN_ERROR:
        # Leaving out any group changes the difference alike, so its variation is unknown.
        return Difference(estimate, None, None, None, **counts, method=Method.TOO_FEW_DIFFERENCES)
    degrees = degrees_of_freedom(np.bincount(codes) / len(codes))
    half = float(t.isf((1 - confidence) / 2, degrees)) * error
    p_value = 2 * float(t.sf(abs(estimate) / error, degrees))
    lower, upper = max(estimate - half, -1.0), min(estimate + half, 1.0)
    return Difference(estimate, lower, upper, p_value, **counts, method=Method.JACKKNIFE_T)


def _find_missing(codes: NDArray[np.intp], target: NDArray[np.intp], differ: NDArray[np.bool_]) -> Method | None:
    """Why no interval can be computed; None if one can."""
    if len(np.unique(codes)) < MIN_GROUPS:
        return Method.TOO_FEW_GROUPS
    if np.bincount(target).min() < MIN_ROWS_PER_LABEL:
        return Method.TOO_FEW_ROWS_PER_LABEL
    if len(np.unique(codes[differ])) < MIN_DIFFERING_GROUPS:
        return Method.TOO_FEW_DIFFERENCES
    return None


def _group_counts(
    target: NDArray[np.intp], a: NDArray[np.intp], b: NDArray[np.intp], codes: NDArray[np.intp], num_labels: int
) -> NDArray[np.float64]:
    """Counts by group, shape [groups, 4, labels]: right answers, and answers plus expected rows, of a and then of b."""
    shape = (int(codes.max()) + 1, num_labels + 1)

    def count(rows: NDArray[np.intp], values: NDArray[np.intp]) -> NDArray[np.float64]:
        cells = np.ravel_multi_index((rows, values), shape)
        # The last value is "outside the labels", which has no F1.
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)[:, :-1].astype(np.float64)

    tables = []
    for answers in (a, b):
        right = answers == target
        tables += [count(codes[right], target[right]), count(codes, answers) + count(codes, target)]
    return np.stack(tables, axis=1)


def _macro_difference(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macro F1 of a minus that of b from counts, shape [..., 4, labels]; labels that don't occur are left out."""
    right_a, total_a, right_b, total_b = np.moveaxis(table, -2, 0)
    with np.errstate(invalid="ignore"):
        scores = 2 * right_a / total_a - 2 * right_b / total_b
    return np.asarray(np.nanmean(scores, axis=-1))


def _jackknife_error(table: NDArray[np.float64]) -> float:
    """Standard error of the difference from counts by group, shape [groups, 4, labels]."""
    left_out = _macro_difference(table.sum(axis=0) - table)
    num_groups = len(table)
    return math.sqrt((num_groups - 1) / num_groups * float(((left_out - left_out.mean()) ** 2).sum()))
