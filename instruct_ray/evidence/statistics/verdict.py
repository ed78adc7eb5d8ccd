"""The verdict on tuning by a written rule: tune, prompt instead, or not settled.

The rule, with a margin m and a level alpha; bounds are those of the 1 - alpha interval of tuned - arm:

* tune: the lower bound is above m for every prompting arm. All must pass, so there is no correction for several arms.
* prompt instead: for some prompting arm the upper bound is below m. One suffices, so Holm's correction applies.
* not settled: otherwise.

"Above 0 for every arm, and above m for the one with the highest accuracy" is not enough for *tune*: the arm with the
highest accuracy on these rows need not be the best one. Where it answers nearly as the tuned model does, and the best
arm does not, that rule says *tune* too often (tests/evidence/statistics/test_verdict_simulation.py has the figures).

The tuned model may answer in several arms, alone and with passages of documents. One that passes is enough for *tune*,
so each is judged at alpha divided by their number (Bonferroni). All must fall short for *prompt instead*.

*tune* and *prompt instead* exclude each other: the test behind the second is the one behind the interval.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from instruct_ray.evidence.statistics.comparison import ArmComparison, compare_arms
from instruct_ray.evidence.statistics.power import detectable_difference
from instruct_ray.evidence.statistics.sentence import say_not_settled, say_prompt_instead, say_tune


class Outcome(StrEnum):
    """What to do."""

    TUNE = "tune"
    PROMPT_INSTEAD = "prompt instead"
    NOT_SETTLED = "not settled"


@dataclass(frozen=True)
class Verdict:
    """Whether tuning was worth it."""

    outcome: Outcome
    sentence: str
    """The verdict with its figures, as a person would say it."""
    tuned_arm: str
    """The arm of the tuned model that the verdict is about: one that passes, or that with the highest accuracy."""
    tuned_accuracy: float
    """Of this arm."""
    best_arm: str | None
    """The prompting arm with the highest accuracy, the first one of equals; None without prompting arms."""
    comparisons: tuple[ArmComparison, ...]
    """Of `tuned_arm` with each prompting arm."""
    num_rows: int
    margin: float
    alpha: float
    detectable: float | None
    """The smallest true difference to the best arm that these rows tell from 0 in 80 % of samples; None if none."""
    rows_to_settle: int | None
    """Rows that settle the verdict in 80 % of samples, if differences are as measured; None if settled, or never."""


def decide(
    tuned: Mapping[str, Sequence[bool]],
    prompting: Mapping[str, Sequence[bool]],
    groups: Sequence[Hashable],
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
) -> Verdict:
    """Apply the rule.

    Args:
        tuned: whether each arm of the tuned model is right, by name, shape [rows].
        prompting: whether each prompting arm is right, by name, shape [rows].
        groups: the group of each row, shape [rows].
        margin: the gain in accuracy from which tuning pays, as a fraction: 0.02 are 2 points.
        alpha: two-sided level of the intervals.

    Raises:
        ValueError: the margin is not in [0, 1), or the arms have different numbers of rows.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"the margin lies in [0, 1), not {margin}")
    level = alpha / len(tuned)
    compared = {
        name: compare_arms(correct, prompting, groups, margin=margin, alpha=level) for name, correct in tuned.items()
    }
    num_rows = len(groups)
    accuracies = {name: sum(correct) / num_rows if num_rows else 0.0 for name, correct in tuned.items()}
    passing = [name for name, comparisons in compared.items() if comparisons and _beats_all(comparisons, margin)]
    tuned_arm = max(passing or compared, key=lambda name: accuracies[name])
    comparisons = compared[tuned_arm]
    best = max(comparisons, key=lambda comparison: comparison.accuracy, default=None)
    detectable = _find_detectable(best, level)
    against = _find_arms_for_prompting(compared, tuned_arm, alpha)
    rows_to_settle = None
    if best is not None and passing:
        outcome, sentence = Outcome.TUNE, say_tune(tuned_arm, accuracies[tuned_arm], best)
    elif against:
        arm = max(against, key=lambda comparison: comparison.accuracy)
        outcome, sentence = Outcome.PROMPT_INSTEAD, say_prompt_instead(tuned_arm, arm, margin)
    else:
        outcome, rows_to_settle = Outcome.NOT_SETTLED, _find_rows_to_settle(comparisons, best, margin)
        sentence = say_not_settled(tuned_arm, num_rows, best, margin, detectable, rows_to_settle)
    return Verdict(
        outcome=outcome,
        sentence=sentence,
        tuned_arm=tuned_arm,
        tuned_accuracy=accuracies[tuned_arm],
        best_arm=best.arm if best is not None else None,
        comparisons=comparisons,
        num_rows=num_rows,
        margin=margin,
        alpha=alpha,
        detectable=detectable,
        rows_to_settle=rows_to_settle,
    )


def _beats_all(comparisons: Sequence[ArmComparison], margin: float) -> bool:
    lowers = [comparison.difference.lower for comparison in comparisons]
    return all(lower is not None and lower > margin for lower in lowers)


def _find_arms_for_prompting(
    compared: Mapping[str, Sequence[ArmComparison]], tuned_arm: str, alpha: float
) -> list[ArmComparison]:
    """The arms against which every arm of the tuned model is shown to gain less than the margin."""

    def falls_short(comparison: ArmComparison) -> bool:
        return comparison.p_not_below_margin is not None and comparison.p_not_below_margin < alpha / 2

    return [
        comparison
        for place, comparison in enumerate(compared[tuned_arm])
        if all(falls_short(comparisons[place]) for comparisons in compared.values())
    ]


def _find_detectable(best: ArmComparison | None, alpha: float) -> float | None:
    if best is None or best.difference.lower is None:
        return None
    difference = best.difference
    return detectable_difference(
        difference.num_rows, difference.discordant_share, design_effect=difference.design_effect, alpha=alpha
    )


def _find_rows_to_settle(comparisons: Sequence[ArmComparison], best: ArmComparison | None, margin: float) -> int | None:
    """Rows for the outcome that the measured differences point to: more than there are."""
    if best is None:
        return None
    if best.difference.estimate > margin:
        # Then all are above the margin, and all must be settled.
        counts = [comparison.rows_to_settle for comparison in comparisons]
        needed = max((count for count in counts if count is not None), default=None)
    else:
        below = [comparison for comparison in comparisons if comparison.difference.estimate < margin]
        counts = [comparison.rows_to_settle for comparison in below]
        needed = min((count for count in counts if count is not None), default=None)
    return max(needed, best.difference.num_rows + 1) if needed is not None else None
