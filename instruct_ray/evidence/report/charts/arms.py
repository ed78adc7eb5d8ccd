"""pure: charts that compare the arms: accuracy, differences, tokens against accuracy, latency, throughput."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from instruct_ray.evidence.report.charts.figure import Chart, make_chart
from instruct_ray.evidence.report.charts.intervals import Line, Mark, draw_intervals, mark_of, span_limits
from instruct_ray.evidence.report.charts.tradeoff import Point, draw_tradeoff
from instruct_ray.evidence.report.evidence_file import TUNED, ArmResult, ComparisonResult, SliceOfRows
from instruct_ray.evidence.report.formatting import interval, number, percent, points, seconds

# More lines than this are no chart any more; the table has them all.
MAX_SLICES = 12


def accuracy_chart(arms: Mapping[str, ArmResult]) -> Chart | None:
    """Accuracy of all arms with intervals; None if no arm has one."""
    known = {name: arm for name, arm in arms.items() if arm.accuracy is not None}
    lines = [
        Line(
            name,
            (mark_of(arm.kind, _points(arm.accuracy), _scaled(arm.accuracy_lower), _scaled(arm.accuracy_upper)),),
            arm.kind,
            percent(arm.accuracy),
            is_bold=name == TUNED,
        )
        for name, arm in known.items()
    ]
    if not lines:
        return None
    title = "Accuracy with interval: " + ", ".join(
        f"{name} {percent(arm.accuracy)} ({interval(arm.accuracy_lower, arm.accuracy_upper)})"
        for name, arm in known.items()
    )
    return make_chart("accuracy", title, lambda width: draw_intervals(width, lines, "accuracy, %", limits=(0.0, 100.0)))


def difference_chart(
    differences: Mapping[str, ComparisonResult], arms: Mapping[str, ArmResult], tuned_arm: str, margin: float
) -> Chart | None:
    """The tuned model minus each other arm, by arm, with the margin; None without comparisons."""
    lines = [
        _difference_line(f"{tuned_arm} − {name}", one, arms[name].kind if name in arms else "rival")
        for name, one in differences.items()
        if one.estimate is not None
    ]
    title = "Accuracy of the tuned model minus that of each other arm, in points: " + ", ".join(
        f"{name} {points(one.estimate)} ({interval(one.lower, one.upper, 'points')})"
        for name, one in differences.items()
    )
    references = [(0.0, "-"), (100 * margin, "--")] if margin else [(0.0, "-")]
    return _difference_chart("differences", title, lines, "points; dashed: the margin", references)


def slice_chart(slices: Sequence[SliceOfRows]) -> Chart | None:
    """The worst slices: the tuned model minus the best prompting arm; None without judged slices."""
    judged = [one for one in slices if one.judged and one.comparison and one.comparison.estimate is not None]
    worst = sorted(judged, key=lambda one: one.comparison.estimate or 0.0 if one.comparison else 0.0)[:MAX_SLICES]
    lines = [_difference_line(one.name, one.comparison, "tuned") for one in worst if one.comparison]
    title = "Accuracy of the tuned model minus that of the best prompting arm, in points, by slice: " + ", ".join(
        f"{line.label} {line.text}" for line in lines
    )
    return _difference_chart("slices", title, lines, "points; above 0 the tuned model is better", [(0.0, "-")])


def tradeoff_chart(arms: Mapping[str, ArmResult]) -> Chart | None:
    """Tokens of a request against accuracy; None if no arm has both."""
    shown = [
        Point(
            name,
            arm.tokens,
            _points(arm.accuracy),
            _scaled(arm.accuracy_lower),
            _scaled(arm.accuracy_upper),
            arm.kind,
            is_bold=name == TUNED,
        )
        for name, arm in arms.items()
        if arm.tokens and arm.accuracy is not None
    ]
    if not shown:
        return None
    title = "Tokens of a request against accuracy: " + ", ".join(
        f"{point.label} {number(point.x)} tokens, {percent(point.y / 100)}" for point in shown
    )
    return make_chart("tradeoff", title, lambda width: draw_tradeoff(width, shown))


def latency_chart(arms: Mapping[str, ArmResult]) -> Chart | None:
    """p50 and p95 latency of single requests; None if it was not measured."""
    lines, ends = [], []
    for name, arm in arms.items():
        if arm.latency is None or arm.latency.p50.value is None:
            continue
        p50, p95 = arm.latency.p50, arm.latency.p95
        marks = [Mark(p50.value or 0.0, p50.lower, p50.upper, "o")]
        if p95.value is not None:
            marks.append(Mark(p95.value, p95.lower, p95.upper, "D", is_hollow=True))
        ends += [p50.upper, p95.upper, p50.value, p95.value]
        lines.append(Line(name, tuple(marks), arm.kind, f"{seconds(p50.value)} · {seconds(p95.value)}", name == TUNED))
    if not lines:
        return None
    limits = (0.0, 1.06 * span_limits(ends, minimum=0.0, maximum=1e9, pad=0.0)[1] or 1.0)
    title = "Latency of single requests, p50 and p95: " + ", ".join(f"{line.label} {line.text}" for line in lines)
    label = "seconds; filled: p50, hollow: p95"
    return make_chart(
        "latency", title, lambda width: draw_intervals(width, lines, label, limits=limits, text_pixels=124)
    )


def _difference_line(label: str, difference: ComparisonResult, kind: str) -> Line:
    estimate = _points(difference.estimate)
    mark = mark_of(kind, estimate, _scaled(difference.lower), _scaled(difference.upper))
    return Line(label, (mark,), kind, points(difference.estimate))


def _difference_chart(
    name: str, title: str, lines: Sequence[Line], axis_label: str, references: Sequence[tuple[float, str]]
) -> Chart | None:
    if not lines:
        return None
    ends = [end for line in lines for mark in line.marks for end in (mark.value, mark.lower, mark.upper)]
    limits = span_limits([*ends, *(position for position, _ in references)], minimum=-100.0, maximum=100.0, pad=3.0)

    def draw(width: float) -> Figure:
        return draw_intervals(width, lines, axis_label, limits=limits, references=references)

    return make_chart(name, title, draw)


def _points(share: float | None) -> float:
    return 100 * (share or 0.0)


def _scaled(share: float | None) -> float | None:
    return None if share is None else 100 * share
