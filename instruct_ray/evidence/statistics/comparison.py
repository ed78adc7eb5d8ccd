"""The tuned model against each prompting arm: difference, test against the margin, and rows that would settle it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from instruct_ray.evidence.statistics.accuracy import p_value_not_below, paired_accuracy_difference
from instruct_ray.evidence.statistics.difference import Difference
from instruct_ray.evidence.statistics.holm import adjust_holm
from instruct_ray.evidence.statistics.power import rows_needed


@dataclass(frozen=True)
class ArmComparison:
    """The tuned model against one prompting arm."""

    arm: str
    accuracy: float
    """Of the prompting arm."""
    difference: Difference
    """Accuracy of tuned - accuracy of the arm."""
    p_not_below_margin: float | None
    """One-sided p value of "tuned - arm >= margin", by Holm over the arms; None where there is no interval."""
    rows_to_settle: int | None
    """Rows that settle this comparison in 80 % of samples, if the difference is as measured; None if no number does."""


def compare_arms(
    tuned: Sequence[bool],
    prompting: Mapping[str, Sequence[bool]],
    groups: Sequence[Hashable],
    *,
    margin: float,
    alpha: float,
) -> tuple[ArmComparison, ...]:
    """Compare the tuned model with each prompting arm; the arguments are those of `verdict.decide`."""
    differences = {
        name: paired_accuracy_difference(tuned, correct, groups, confidence=1 - alpha)
        for name, correct in prompting.items()
    }
    p_values = {name: p_value_not_below(tuned, correct, groups, margin) for name, correct in prompting.items()}
    known = {name: p_value for name, p_value in p_values.items() if p_value is not None}
    adjusted = dict(zip(known, adjust_holm(list(known.values())), strict=True))
    return tuple(
        ArmComparison(
            name,
            sum(correct) / len(correct) if correct else 0.0,
            differences[name],
            adjusted.get(name),
            _rows_to_settle(differences[name], margin, alpha, len(prompting)),
        )
        for name, correct in prompting.items()
    )


def _rows_to_settle(difference: Difference, margin: float, alpha: float, num_arms: int) -> int | None:
    """Rows that settle on which side of the margin a difference lies."""
    if difference.lower is None:
        return None
    # Below the margin the first step of Holm's correction must pass.
    level = alpha if difference.estimate > margin else alpha / num_arms
    return rows_needed(
        difference.estimate,
        difference.discordant_share,
        margin=margin,
        design_effect=difference.design_effect,
        alpha=level,
    )
