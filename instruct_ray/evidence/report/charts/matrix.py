"""pure: the confusion matrix of a label task with few labels."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from instruct_ray.evidence.report.charts.figure import BLUE, VERMILLION, Chart, make_chart, new_axes
from instruct_ray.evidence.report.formatting import short_label

# Shares above are hidden by too dark a cell.
MAX_OPACITY = 0.6
MAX_CELL = 86.0
# Two matrices stand side by side.
WIDE = 460.0


def matrix_chart(
    arm: str, number: int, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]
) -> Chart:
    """Counts by expected label and answer, shape [rows, columns]; right answers are blue, wrong ones vermillion.

    Args:
        arm: name of the arm.
        number: of the chart on the page.
        rows: expected labels.
        columns: answers: the labels, and perhaps one more for all other answers.
        counts: rows of the test.
    """
    total = sum(map(sum, counts))
    right = sum(counts[index][index] for index in range(len(rows)))
    title = f"Confusion matrix of {arm}: {right} of {total} rows on the diagonal"
    return make_chart(f"confusion-{number}", title, lambda width: _draw(width, rows, columns, counts), wide_width=WIDE)


def _draw(width: float, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    characters = 14 if width > 400 else 11
    left = 26 + 7.2 * max(len(short_label(label, characters)) for label in rows)
    cell = min(MAX_CELL, (width - left - 14) / len(columns))
    slanted = any(len(short_label(label, characters)) * 7.2 > cell - 6 for label in columns)
    top = 38 + (5.6 * max(len(short_label(label, characters)) for label in columns) if slanted else 18)
    grid_width, height = cell * len(columns), min(cell, 46.0)
    figure, axes = new_axes(
        width, top + height * len(rows) + 8, left=left, right=width - left - grid_width, top=top, bottom=8
    )
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    for row, row_counts in enumerate(counts):
        row_total = sum(row_counts) or 1
        for column, count in enumerate(row_counts):
            color = BLUE if row == column else VERMILLION
            opacity = MAX_OPACITY * count / row_total
            cell_box = Rectangle((column + 0.03, row + 0.04), 0.94, 0.92, facecolor=color, alpha=max(opacity, 0.03))
            axes.add_patch(cell_box)
            if count:
                axes.text(
                    column + 0.5, row + 0.5, f"{count:,}", ha="center", va="center", fontsize=12 if cell > 30 else 9
                )
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(
        [index + 0.5 for index in range(len(columns))],
        [short_label(label, characters) for label in columns],
        rotation=40 if slanted else 0,
        ha="left" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.set_yticks([index + 0.5 for index in range(len(rows))], [short_label(label, characters) for label in rows])
    axes.tick_params(length=0)
    axes.set_xlabel("answered", labelpad=9)
    axes.set_ylabel("expected")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
