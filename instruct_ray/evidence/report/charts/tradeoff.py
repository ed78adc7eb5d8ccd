"""pure: tokens of a request against accuracy, a point per arm, with labels that do not cover each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from instruct_ray.evidence.report.charts.figure import KIND_COLORS, KIND_MARKERS, MIN_SIDE_LABELS, new_axes
from instruct_ray.evidence.report.formatting import short_label

# From this ratio of the largest to the smallest number of tokens the axis is logarithmic.
MIN_LOG_RATIO = 6.0
LABEL_CHARACTERS = 20
# Offsets of a label from its point in pixels, with the alignment: the first that covers nothing is taken.
PLACES = (
    (11, 0, "left", "center"),
    (-11, 0, "right", "center"),
    (0, 13, "center", "bottom"),
    (0, -13, "center", "top"),
    (11, 13, "left", "bottom"),
    (11, -13, "left", "top"),
    (-11, 13, "right", "bottom"),
    (-11, -13, "right", "top"),
    (11, 26, "left", "bottom"),
    (11, -26, "left", "top"),
    (-11, 26, "right", "bottom"),
    (-11, -26, "right", "top"),
)


@dataclass(frozen=True)
class Point:
    """An arm in the chart."""

    label: str
    x: float | None
    """Tokens of a request."""
    y: float
    """Accuracy in percent."""
    lower: float | None
    upper: float | None
    kind: str
    is_bold: bool = False

    @property
    def tokens(self) -> float:
        """Tokens of a request, as a number."""
        return self.x or 0.0


def draw_tradeoff(width: float, points: Sequence[Point]) -> Figure:
    """Draw the points; at least one, all with tokens above 0."""
    figure, axes = new_axes(width, 380 if width >= MIN_SIDE_LABELS else 330, left=52, top=16, bottom=50)
    tokens = [point.tokens for point in points]
    _set_token_axis(axes, min(tokens), max(tokens))
    axes.set_ylim(-3, 103)
    axes.grid()
    axes.tick_params(length=0)
    axes.set_xlabel("tokens of a request, prompt and answer")
    axes.set_ylabel("accuracy, %")
    for point in points:
        color = KIND_COLORS[point.kind]
        if point.lower is not None and point.upper is not None:
            axes.plot([point.tokens] * 2, [point.lower, point.upper], color=color, linewidth=3, alpha=0.5)
        axes.plot([point.tokens], [point.y], KIND_MARKERS[point.kind], color=color, markersize=10)
    _place_labels(axes, points)
    return figure


def _set_token_axis(axes: Axes, lowest: float, highest: float) -> None:
    if highest > MIN_LOG_RATIO * lowest:
        axes.set_xscale("log")
        axes.set_xlim(lowest / 1.5, highest * 1.7)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, highest * 1.18)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _place_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Give each point its name, the tuned model's first, at the first place that is free."""
    area = axes.bbox
    taken = [_box_of(axes, point) for point in points]
    for point in sorted(points, key=lambda point: not point.is_bold):
        label = short_label(point.label, LABEL_CHARACTERS)
        weight = "bold" if point.is_bold else "normal"
        for dx, dy, horizontal, vertical in PLACES:
            text = axes.annotate(
                label, (point.tokens, point.y), (dx, dy), textcoords="offset pixels", ha=horizontal, va=vertical,
                fontweight=weight, annotation_clip=False,
            )  # fmt: skip
            box = text.get_window_extent().padded(2)
            is_free = not any(box.overlaps(other) for other in taken)
            if is_free and box.x0 >= area.x0 and box.x1 <= area.x1 + 12 and box.y0 >= area.y0 - 4:
                break
            text.remove()
        else:
            text = axes.annotate(label, (point.tokens, point.y), (11, 0), textcoords="offset pixels", va="center")
            box = text.get_window_extent()
        taken.append(box)


def _box_of(axes: Axes, point: Point) -> Bbox:
    """The pixels that a point and its interval cover."""
    lower = point.y if point.lower is None else point.lower
    upper = point.y if point.upper is None else point.upper
    (x, bottom), (_, top) = axes.transData.transform([(point.tokens, lower), (point.tokens, upper)])
    (_, middle), _ = axes.transData.transform([(point.tokens, point.y), (point.tokens, point.y)])
    return Bbox.from_extents(x - 6, min(bottom, middle - 6), x + 6, max(top, middle + 6))
