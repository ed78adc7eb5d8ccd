"""Label tasks: whether the expected outputs are labels, and macro F1 and confusion counts of answers. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instruct_ray.evidence.metrics import normalize

MAX_LABELS = 500
MAX_LABEL_WORDS = 8
# Rows a label must have on average, so that outputs that repeat by chance are no labels.
MIN_ROWS_PER_LABEL = 3
MIN_ROWS = 20
# Share of the rows whose output occurs more than once.
MIN_REPEATED_SHARE = 0.9


@dataclass(frozen=True)
class Confusion:
    """How often each label was answered for each expected label."""

    labels: tuple[str, ...]
    """Normalized labels that are expected, in alphabetical order."""
    counts: tuple[tuple[int, ...], ...]
    """Rows by expected label and answer, shape [labels, labels + 1]; the last column is "outside the labels"."""

    @property
    def num_outside(self) -> int:
        """Rows that were answered with none of the labels."""
        return sum(row[-1] for row in self.counts)


def find_labels(outputs: Sequence[str]) -> tuple[str, ...] | None:
    """The labels that the outputs consist of, normalized and in alphabetical order; None if they are no labels.

    Labels are short outputs, few against the number of rows, that nearly all occur more than once.

    Args:
        outputs: expected outputs of held-out rows, or of training rows.
    """
    counts = Counter(normalize(output) for output in outputs)
    num_rows = len(outputs)
    if num_rows < MIN_ROWS or not 2 <= len(counts) <= MAX_LABELS or len(counts) * MIN_ROWS_PER_LABEL > num_rows:
        return None
    if any(len(label.split()) > MAX_LABEL_WORDS for label in counts):
        return None
    num_repeated = sum(count for count in counts.values() if count > 1)
    return tuple(sorted(counts)) if num_repeated >= MIN_REPEATED_SHARE * num_rows else None


def encode_labels(texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.intp]:
    """The index in `labels` of each text, shape [rows]; `len(labels)` for a text that is none of them."""
    numbers = {label: index for index, label in enumerate(labels)}
    return np.array([numbers.get(normalize(text), len(labels)) for text in texts], dtype=np.intp)


def count_confusion(answers: Sequence[str], expected: Sequence[str]) -> Confusion:
    """Count answers by expected label; the labels are the expected outputs.

    Raises:
        ValueError: the arguments have different lengths.
    """
    if len(answers) != len(expected):
        raise ValueError(f"{len(answers)} answers to {len(expected)} rows")
    labels = tuple(sorted({normalize(text) for text in expected}))
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.intp)
    np.add.at(counts, (encode_labels(expected, labels), encode_labels(answers, labels)), 1)
    return Confusion(labels, tuple(tuple(int(count) for count in row) for row in counts))


def macro_f1(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Mean F1 over the expected labels; an answer outside the labels is a miss, and no false positive of a label.

    Raises:
        ValueError: there are no rows, or the arguments have different lengths.
    """
    if not expected:
        raise ValueError("macro F1 of no rows")
    confusion = count_confusion(answers, expected)
    counts = np.array(confusion.counts)[:, : len(confusion.labels)]
    # 2 TP / (2 TP + FP + FN) = 2 TP / (answered + expected); every label is expected at least once.
    totals = counts.sum(axis=0) + np.array(confusion.counts).sum(axis=1)
    return float((2 * np.diagonal(counts) / totals).mean())
