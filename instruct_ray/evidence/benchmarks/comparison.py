"""Answers of the base and of the tuned model to a benchmark -> the figures of `benchmarks.json`. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from instruct_ray.evidence.results.figures import difference_figures
from instruct_ray.evidence.statistics.accuracy import accuracy_interval, paired_accuracy_difference


@dataclass(frozen=True)
class BenchmarkAnswers:
    """What one model answered."""

    metric: str
    """Of lm-eval, by which an answer is right."""
    num_few_shot: int
    """Examples in each prompt, as the benchmark sets it."""
    chance: float | None
    """The accuracy of guessing; None where answers are generated."""
    dtype: str
    """Precision in which the model was computed."""
    correct: Mapping[str, bool]
    """By question: its task and number."""

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "correct": dict(self.correct)}


def compare_answers(base: BenchmarkAnswers, tuned: BenchmarkAnswers) -> dict[str, Any]:
    """The figures of one benchmark: both accuracies, and tuned minus base on the same questions.

    Raises:
        ValueError: the models answered different questions.
    """
    if base.correct.keys() != tuned.correct.keys():
        raise ValueError("base and tuned model answered different questions")
    questions = list(base.correct)
    right_base = [base.correct[one] for one in questions]
    right_tuned = [tuned.correct[one] for one in questions]
    # Each question is a unit of its own.
    base_accuracy = accuracy_interval(right_base, questions)
    difference = paired_accuracy_difference(right_tuned, right_base, questions)
    return {
        "metric": base.metric,
        "num_few_shot": base.num_few_shot,
        "num_questions": len(questions),
        "chance": base.chance,
        "base": base_accuracy.estimate,
        "base_lower": base_accuracy.lower,
        "base_upper": base_accuracy.upper,
        "tuned": accuracy_interval(right_tuned, questions).estimate,
        "comparison": difference_figures(difference),
        "problem": _find_problem(base_accuracy.lower, base.chance),
        "dtypes": {"base": base.dtype, "tuned": tuned.dtype},
    }


def _find_problem(base_lower: float | None, chance: float | None) -> str | None:
    """Why the benchmark can't show a loss; None if it can."""
    if chance is None or base_lower is None or base_lower > chance:
        return None
    return f"the base model is not shown to be better than guessing ({chance:.2f}), so a loss can't be seen"
