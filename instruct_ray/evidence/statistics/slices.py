"""Slices of the held-out rows: accuracy of each arm, and whether an arm loses against another one in a slice."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.stats import norm

from instruct_ray.evidence.statistics.accuracy import paired_accuracy_difference
from instruct_ray.evidence.statistics.difference import Difference
from instruct_ray.evidence.statistics.holm import adjust_holm

OTHER = "(other)"
# Values with fewer rows are put together as OTHER.
MIN_ROWS = 10
NUM_LENGTH_BINS = 4


class SliceKind(StrEnum):
    """By what rows are sliced."""

    INSTRUCTION = "instruction"
    LABEL = "label"
    LENGTH = "prompt length"


class Judgement(StrEnum):
    """Whether an arm loses against the reference in a slice."""

    NO_LOSS = "no loss above the tolerated one"
    """The lower bound of the difference is above minus the tolerated loss."""
    LOSS = "worse"
    """The arm is worse, after Holm's correction over all slices."""
    NOT_SETTLED = "not settled"
    CANNOT_BE_JUDGED = "cannot be judged"
    """Too few rows: even without a single loss the tolerated one could not be excluded."""


@dataclass(frozen=True)
class Slice:
    """Some of the held-out rows."""

    kind: SliceKind
    name: str
    indices: tuple[int, ...]
    """Indices of the rows."""


@dataclass(frozen=True)
class SliceResult:
    """The result of one slice."""

    kind: SliceKind
    name: str
    num_rows: int
    accuracies: dict[str, float]
    """By arm."""
    difference: Difference
    """Accuracy of the judged arm - accuracy of the reference."""
    p_value: float | None
    """Two-sided p value of "no difference", by Holm over all slices; None where there is none."""
    judgement: Judgement


def slice_by_value(kind: SliceKind, values: Sequence[str]) -> list[Slice]:
    """One slice per value, such as the instruction or the label of each row, the largest first; shape [rows].

    Values of fewer than MIN_ROWS rows share the slice OTHER. No slices if that leaves only one.
    """
    counts = Counter(values)
    names = [value if counts[value] >= MIN_ROWS else OTHER for value in values]
    return _make_slices(kind, names, [name for name, _ in Counter(names).most_common()])


def slice_by_length(lengths: Sequence[int]) -> list[Slice]:
    """Slices of about equal numbers of rows by prompt length in tokens, the shortest first; shape of `lengths` [rows].

    Rows of equal length share a slice. No slices if there is only one.
    """
    if not lengths:
        return []
    inner = np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1]
    edges = np.unique(np.quantile(np.asarray(lengths), inner, method="inverted_cdf"))
    # A bin holds the lengths above the edge before it, up to its own.
    bins = np.searchsorted(edges, lengths).tolist()
    members: dict[int, list[int]] = {}
    for number, length in zip(bins, lengths, strict=True):
        members.setdefault(number, []).append(length)
    titles = {number: f"{min(found)} to {max(found)} tokens" for number, found in members.items()}
    names = [titles[number] for number in bins]
    return _make_slices(SliceKind.LENGTH, names, [titles[number] for number in sorted(titles)])


def min_rows_to_judge(tolerated_loss: float, alpha: float = 0.05) -> int:
    """Rows with which a slice without any loss excludes the tolerated loss: 188 for 2 points, 73 for 5, 35 for 10.

    Tango's upper bound of the loss is z² / (n + z²) if no row is discordant.

    Raises:
        ValueError: the tolerated loss is not in (0, 1).
    """
    if not 0 < tolerated_loss < 1:
        raise ValueError(f"the tolerated loss lies in (0, 1), not {tolerated_loss}")
    return math.ceil(float(norm.isf(alpha / 2)) ** 2 * (1 - tolerated_loss) / tolerated_loss)


def judge_slices(
    slices: Sequence[Slice],
    correct: Mapping[str, Sequence[bool]],
    groups: Sequence[Hashable],
    *,
    arm: str,
    reference: str,
    tolerated_loss: float = 0.05,
    alpha: float = 0.05,
) -> tuple[SliceResult, ...]:
    """Judge an arm against a reference in each slice.

    Args:
        slices: which rows.
        correct: whether each arm is right, by name, shape [rows].
        groups: the group of each row, shape [rows].
        arm: the judged arm, such as the tuned model.
        reference: the arm it is held against, such as the best prompting arm or the champion.
        tolerated_loss: the loss of accuracy to exclude, as a fraction.
        alpha: two-sided level of the intervals, and of Holm's correction.
    """
    differences = []
    for part in slices:
        right, wanted = ([correct[name][index] for index in part.indices] for name in (arm, reference))
        part_groups = [groups[index] for index in part.indices]
        differences.append(paired_accuracy_difference(right, wanted, part_groups, confidence=1 - alpha))
    known = [index for index, difference in enumerate(differences) if difference.p_value is not None]
    raw = [difference.p_value for difference in differences if difference.p_value is not None]
    p_values = dict(zip(known, adjust_holm(raw), strict=True))
    return tuple(
        SliceResult(
            part.kind,
            part.name,
            len(part.indices),
            {
                name: sum(values[index] for index in part.indices) / len(part.indices)
                for name, values in correct.items()
            },
            difference,
            p_values.get(number),
            _judge(difference, p_values.get(number), tolerated_loss, alpha),
        )
        for number, (part, difference) in enumerate(zip(slices, differences, strict=True))
    )


def _judge(difference: Difference, p_value: float | None, tolerated_loss: float, alpha: float) -> Judgement:
    if difference.lower is None:
        return Judgement.CANNOT_BE_JUDGED
    if difference.lower > -tolerated_loss:
        return Judgement.NO_LOSS
    if difference.estimate < 0 and p_value is not None and p_value <= alpha:
        return Judgement.LOSS
    # Related rows count as fewer.
    if difference.num_rows / difference.design_effect < min_rows_to_judge(tolerated_loss, alpha):
        return Judgement.CANNOT_BE_JUDGED
    return Judgement.NOT_SETTLED


def _make_slices(kind: SliceKind, names: Sequence[str], order: Sequence[str]) -> list[Slice]:
    """Slices in the given order of names; none if there is only one."""
    indices: dict[str, list[int]] = {name: [] for name in order}
    for index, name in enumerate(names):
        indices[name].append(index)
    return [Slice(kind, name, tuple(indices[name])) for name in order] if len(order) > 1 else []
