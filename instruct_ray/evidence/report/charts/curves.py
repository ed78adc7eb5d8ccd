"""pure: loss by step, and accuracy by number of training rows."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from instruct_ray.evidence.report.charts.figure import (
    BLUE,
    INK,
    MIN_SIDE_LABELS,
    VERMILLION,
    Chart,
    make_chart,
    new_axes,
)
from instruct_ray.evidence.report.formatting import interval, number, percent
from instruct_ray.evidence.report.learning_curve import LearningCurve
from instruct_ray.evidence.report.losses import LossCurve, LossPoint, smooth

COUNT = FuncFormatter(lambda value, _: f"{value:,.0f}")


def loss_chart(training: LossCurve, validation: Sequence[LossPoint], exported_step: int | None) -> Chart | None:
    """Training and validation loss by step; None without any."""
    if not training.points and not validation:
        return None
    parts = []
    if training.points:
        last = smooth(training.points)[-1]
        parts.append(f"training loss ends at {last.loss:.3f} at step {training.points[-1].step:,}")
    if validation:
        lowest = min(validation, key=lambda point: point.loss)
        parts.append(f"validation loss is lowest at step {lowest.step:,} with {lowest.loss:.3f}")
    return make_chart(
        "losses", "; ".join(parts), lambda width: _draw_losses(width, training, validation, exported_step)
    )


def learning_chart(curve: LearningCurve) -> Chart | None:
    """Accuracy by number of training rows, and what doubling them should buy; None without points."""
    if not curve.points:
        return None
    title = "Accuracy by number of training rows: " + ", ".join(
        f"{number(point.num_rows)} rows {percent(point.accuracy)} ({interval(point.lower, point.upper)})"
        for point in curve.points
    )
    return make_chart("learning", title, lambda width: _draw_learning(width, curve))


def _draw_losses(
    width: float, training: LossCurve, validation: Sequence[LossPoint], exported_step: int | None
) -> Figure:
    figure, axes = new_axes(width, 320 if width >= MIN_SIDE_LABELS else 280, left=56, top=30, bottom=50)
    if training.points:
        steps = [point.step for point in training.points]
        axes.plot(steps, [point.loss for point in training.points], color=BLUE, linewidth=1, alpha=0.35)
        smoothed = [point.loss for point in smooth(training.points)]
        axes.plot(steps, smoothed, color=BLUE, linewidth=2.2, label="training, smoothed")
    if validation:
        steps, losses = [point.step for point in validation], [point.loss for point in validation]
        axes.plot(steps, losses, "D--", color=VERMILLION, markersize=6, linewidth=1.8, label="validation")
    if exported_step is not None:
        axes.axvline(exported_step, color=INK, linestyle=":", linewidth=1.4, alpha=0.7, label="the model")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _finish(axes, "step", "loss, nats a token")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=3, fontsize=11, columnspacing=1.2, handlelength=1.6
    )
    return figure


def _draw_learning(width: float, curve: LearningCurve) -> Figure:
    figure, axes = new_axes(width, 320 if width >= MIN_SIDE_LABELS else 280, left=56, top=30, bottom=50)
    rows = [point.num_rows for point in curve.points]
    for point in curve.points:
        if point.lower is not None and point.upper is not None:
            ends = [100 * point.lower, 100 * point.upper]
            axes.plot([point.num_rows] * 2, ends, color=VERMILLION, linewidth=3, alpha=0.5)
    accuracies = [100 * point.accuracy for point in curve.points]
    axes.plot(rows, accuracies, "D-", color=VERMILLION, markersize=7, linewidth=2, label="measured")
    last, gain = curve.points[-1], curve.doubling
    if gain is not None and gain.gain is not None:
        expected = 100 * (last.accuracy + gain.gain)
        axes.plot([rows[-1], 2 * rows[-1]], [accuracies[-1], expected], ":", color=BLUE, linewidth=2)
        axes.plot([2 * rows[-1]], [expected], "o", color=BLUE, markersize=8, label="expected for twice the rows")
        if gain.lower is not None and gain.upper is not None:
            ends = [100 * (last.accuracy + gain.lower), 100 * (last.accuracy + gain.upper)]
            axes.plot([2 * rows[-1]] * 2, ends, color=BLUE, linewidth=3, alpha=0.5)
    axes.set_xlim(left=0)
    axes.margins(y=0.12)
    _finish(axes, "training rows", "accuracy, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=2, fontsize=11, columnspacing=1.2)
    return figure


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(COUNT)
