"""Rows that look mislabelled: the tuned model and few-shot prompting agree on another answer than the label. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from instruct_ray.evidence.metrics import normalize


@dataclass(frozen=True)
class SuspiciousRow:
    """A held-out row whose expected output may be wrong. It still counts as it is: a person decides."""

    index: int
    """Index of the row in the held-out rows."""
    id: str
    expected: str
    answer: str
    """The tuned model's answer, which few-shot prompting gives, too."""


def find_suspicious_rows(
    ids: Sequence[str], expected: Sequence[str], tuned_answers: Sequence[str], few_shot_answers: Sequence[str]
) -> list[SuspiciousRow]:
    """Find the rows that both arms answer alike, and not as expected; texts are compared after `metrics.normalize`.

    Empty answers are left out: they say nothing about the label.

    Raises:
        ValueError: the arguments have different lengths.
    """
    rows = enumerate(zip(ids, expected, tuned_answers, few_shot_answers, strict=True))
    return [
        SuspiciousRow(index, row_id, target, tuned)
        for index, (row_id, target, tuned, few_shot) in rows
        if normalize(tuned) and normalize(tuned) == normalize(few_shot) != normalize(target)
    ]
