"""pure: values with their intervals, one below the other: accuracies, differences, latencies."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instruct_ray.evidence.report.charts.figure import CARD, INK, KIND_COLORS, KIND_MARKERS, MIN_SIDE_LABELS, new_axes
from instruct_ray.evidence.report.formatting import short_label

# Of the labels beside the axis, and above the intervals on phones.
SIDE_CHARACTERS, ABOVE_CHARACTERS = 30, 44
PIXELS_PER_CHARACTER = 7.2


@dataclass(frozen=True)
class Mark:
    """One value with its interval, in the unit of the axis."""

    value: float
    lower: float | None
    upper: float | None
    marker: str
    is_hollow: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the chart: a label, its marks, and a text at the right."""

    label: str
    marks: tuple[Mark, ...]
    kind: str
    text: str
    is_bold: bool = False


def mark_of(kind: str, value: float, lower: float | None, upper: float | None) -> Mark:
    """A mark in the form of a kind of arm."""
    return Mark(value, lower, upper, KIND_MARKERS[kind])


def draw_intervals(
    width: float,
    lines: Sequence[Line],
    axis_label: str,
    *,
    limits: tuple[float, float],
    references: Sequence[tuple[float, str]] = (),
    text_pixels: float = 64,
) -> Figure:
    """Draw lines from top to bottom.

    Args:
        width: of the figure.
        lines: at least one.
        axis_label: what the axis shows, with its unit.
        limits: of the axis.
        references: vertical lines, as (position, style of the line).
        text_pixels: room for the texts at the right.
    """
    beside = width >= MIN_SIDE_LABELS
    step = 34.0 if beside else 46.0
    longest = max(len(short_label(line.label, SIDE_CHARACTERS)) for line in lines)
    left = 18 + PIXELS_PER_CHARACTER * longest if beside else 12.0
    figure, axes = new_axes(width, step * len(lines) + 58, left=left, right=text_pixels, top=8, bottom=50)
    axes.set_xlim(*limits)
    axes.set_ylim(len(lines), 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(axis_label)
    for position, style in references:
        axes.axvline(position, color=INK, linewidth=1.1, linestyle=style, alpha=0.65)
    for number, line in enumerate(lines):
        y = number + (0.5 if beside else 0.68)
        _draw_line(axes, line, y, beside)
    return figure


def span_limits(values: Sequence[float | None], *, minimum: float, maximum: float, pad: float) -> tuple[float, float]:
    """Limits of an axis that hold all values, with room beside them, inside the range that values can have."""
    known = [value for value in values if value is not None]
    if not known:
        return minimum, maximum
    return max(minimum, min(known) - pad), min(maximum, max(known) + pad)


def _draw_line(axes: Axes, line: Line, y: float, beside: bool) -> None:
    color = KIND_COLORS[line.kind]
    for number, mark in enumerate(line.marks):
        height = y + 0.16 * (number - (len(line.marks) - 1) / 2)
        if mark.lower is not None and mark.upper is not None:
            axes.plot([mark.lower, mark.upper], [height, height], color=color, linewidth=3, alpha=0.55)
        face = "none" if mark.is_hollow else color
        axes.plot([mark.value], [height], mark.marker, color=color, markersize=8, markerfacecolor=face, clip_on=False)
    weight = "bold" if line.is_bold else "normal"
    transform = axes.get_yaxis_transform()
    axes.text(1.02, y, line.text, transform=transform, va="center", ha="left", fontweight=weight)
    if beside:
        label = short_label(line.label, SIDE_CHARACTERS)
        axes.text(-0.015, y, label, transform=transform, va="center", ha="right", fontweight=weight)
    else:
        label = short_label(line.label, ABOVE_CHARACTERS)
        behind = {"facecolor": CARD, "edgecolor": "none", "pad": 1.5}
        axes.text(
            0, y - 0.38, label, transform=transform, va="center", ha="left", fontweight=weight, bbox=behind, zorder=3
        )
