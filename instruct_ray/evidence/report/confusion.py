"""pure: the confusion of a label task: a matrix for few labels, the most confused pairs for many."""

from collections.abc import Mapping
from dataclasses import dataclass

from instruct_ray.evidence.report.charts.figure import Chart
from instruct_ray.evidence.report.charts.matrix import matrix_chart
from instruct_ray.evidence.report.evidence_file import ArmResult, ConfusionCounts
from instruct_ray.evidence.report.formatting import shown_text

# More labels fit no matrix that can be read on a phone.
MAX_MATRIX_LABELS = 10
MAX_PAIRS = 20
OUTSIDE = "(other)"


@dataclass(frozen=True)
class Matrix:
    """The matrix of one arm."""

    arm: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    chart: Chart


@dataclass(frozen=True)
class Pair:
    """Rows that were answered with another label than the expected one."""

    expected: str
    answered: str
    num_rows: int
    share: float
    """Of the rows with the expected label."""
    num_rows_of_best: int | None
    """The same of the best prompting arm; None without one."""


@dataclass(frozen=True)
class Confusion:
    """The section of the page."""

    num_labels: int
    matrices: tuple[Matrix, ...]
    """For few labels: of the tuned model and of the best prompting arm."""
    pairs: tuple[Pair, ...]
    """For many labels: the most confused pairs of the tuned model."""
    num_other_pairs: int
    num_wrong: int
    """Rows that the tuned model answered with another label."""
    best_arm: str | None


def build_confusion(arms: Mapping[str, ArmResult], tuned_arm: str, best_arm: str | None) -> Confusion | None:
    """Build the section; None if the tuned model has no confusion counts, since the data is no label task."""
    tuned = arms[tuned_arm].confusion if tuned_arm in arms else None
    if tuned is None or not tuned.labels:
        return None
    best = arms[best_arm].confusion if best_arm in arms and best_arm is not None else None
    pairs = _find_pairs(tuned, best)
    num_wrong = sum(pair.num_rows for pair in pairs)
    shown = {tuned_arm: tuned} | ({best_arm: best} if best is not None and best_arm is not None else {})
    if len(tuned.labels) > MAX_MATRIX_LABELS:
        rest = len(pairs) - MAX_PAIRS
        return Confusion(
            len(tuned.labels), (), tuple(pairs[:MAX_PAIRS]), max(rest, 0), num_wrong, best_arm if best else None
        )
    matrices = tuple(_build_matrix(arm, number, one) for number, (arm, one) in enumerate(shown.items()))
    return Confusion(len(tuned.labels), matrices, (), 0, num_wrong, best_arm)


def _build_matrix(arm: str, number: int, counts: ConfusionCounts) -> Matrix:
    labels = tuple(shown_text(label, 80) for label in counts.labels)
    columns = _columns(labels, counts)
    chart = matrix_chart(arm, number, labels, columns, counts.counts)
    return Matrix(arm, labels, columns, counts.counts, chart)


def _find_pairs(tuned: ConfusionCounts, best: ConfusionCounts | None) -> list[Pair]:
    """All confused pairs of labels, the most frequent first."""
    columns = _columns(tuned.labels, tuned)
    # Arms may have been asked about different rows, if requests failed.
    of_best = {} if best is None else _by_label(best)
    pairs = [
        Pair(
            shown_text(expected, 80),
            shown_text(answered, 80),
            count,
            count / sum(row),
            of_best.get((expected, answered), 0) if best is not None else None,
        )
        for expected, row in zip(tuned.labels, tuned.counts, strict=True)
        for answered, count in zip(columns, row, strict=True)
        if count and answered != expected
    ]
    return sorted(pairs, key=lambda pair: (-pair.num_rows, pair.expected, pair.answered))


def _by_label(counts: ConfusionCounts) -> dict[tuple[str, str], int]:
    columns = _columns(counts.labels, counts)
    return {
        (expected, answered): count
        for expected, row in zip(counts.labels, counts.counts, strict=True)
        for answered, count in zip(columns, row, strict=True)
    }


def _columns(labels: tuple[str, ...], counts: ConfusionCounts) -> tuple[str, ...]:
    has_outside = any(len(row) > len(labels) for row in counts.counts)
    return (*labels, OUTSIDE) if has_outside else labels
