"""The verdict in the words of a person. Accuracies are in percent, differences in points."""

from instruct_ray.evidence.statistics.clusters import MIN_GROUPS
from instruct_ray.evidence.statistics.comparison import ArmComparison
from instruct_ray.evidence.statistics.difference import Difference

# The arm of the tuned model with the row alone.
ALONE = "tuned"


def say_tune(tuned_arm: str, tuned_accuracy: float, best: ArmComparison) -> str:
    """The sentence of *tune*."""
    return (
        f"Tune: {_name(tuned_arm)} is right on {100 * tuned_accuracy:.1f} % of {best.difference.num_rows} rows, "
        f"{_points(best.difference.estimate)} more than {best.arm}, the best prompting arm "
        f"({_interval(best.difference)})."
    )


def say_prompt_instead(tuned_arm: str, arm: ArmComparison, margin: float) -> str:
    """The sentence of *prompt instead*, with the arm that speaks for it."""
    difference = arm.difference
    if difference.upper is not None and difference.upper < 0:
        finding = f"{_name(tuned_arm)} is right less often than {arm.arm}"
    else:
        finding = f"tuning gains less than {_points(margin)} over {arm.arm}"
    return f"Prompt instead: {finding} ({_interval(difference)}, {difference.num_rows} rows)."


def say_not_settled(
    tuned_arm: str,
    num_rows: int,
    best: ArmComparison | None,
    margin: float,
    detectable: float | None,
    rows_to_settle: int | None,
) -> str:
    """The sentence of *not settled*: why, and how many rows would settle it."""
    if best is None:
        return "Not settled: there is no prompting arm to compare the tuned model with."
    if not num_rows:
        return "Not settled: there are no held-out rows."
    difference = best.difference
    if difference.lower is None:
        return (
            f"Not settled: the {num_rows} rows come in {difference.num_groups} groups of related rows, "
            f"and a comparison needs at least {MIN_GROUPS}."
        )
    finding = f"{_name(tuned_arm)} is {_say_distance(difference.estimate, best.arm)} ({_interval(difference)})"
    seen = f"can see differences from {_points(detectable)}" if detectable is not None else "can see no difference"
    return f"Not settled: {finding}; {num_rows} rows {seen}, {_say_rows(num_rows, margin, rows_to_settle)}."


def _say_rows(num_rows: int, margin: float, rows_to_settle: int | None) -> str:
    if rows_to_settle is None:
        return f"and no number of rows settles a gain that is equal to the margin of {_points(margin)}"
    return f"and about {rows_to_settle - num_rows} more rows would settle whether it gains {_points(margin)}"


def _name(tuned_arm: str) -> str:
    return "the tuned model" if tuned_arm == ALONE else f"the tuned model ({tuned_arm})"


def _say_distance(estimate: float, arm: str) -> str:
    if round(100 * estimate, 1) == 0:
        return f"as often right as {arm}"
    return f"{_points(abs(estimate))} {'ahead of' if estimate > 0 else 'behind'} {arm}"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _interval(difference: Difference) -> str:
    if difference.lower is None or difference.upper is None:
        return "no interval"
    return f"interval {100 * difference.lower:+.1f} to {100 * difference.upper:+.1f}"
