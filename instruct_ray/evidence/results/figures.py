"""The figures of one arm in `evidence.json`. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from instruct_ray.evidence.answers import REFUSED, LatencySample
from instruct_ray.evidence.metrics import contains_expected, fraction
from instruct_ray.evidence.results.scores import ScoredArm, Scorer
from instruct_ray.evidence.scoring.label_task import count_confusion
from instruct_ray.evidence.scoring.measures import Measure
from instruct_ray.evidence.statistics.accuracy import accuracy_interval
from instruct_ray.evidence.statistics.difference import Difference
from instruct_ray.evidence.statistics.quantiles import quantile_interval


def arm_figures(arm: ScoredArm, scorer: Scorer) -> dict[str, Any]:
    """The figures of an arm that answered at least one row."""
    answers = list(arm.answers.values())
    accuracy = accuracy_interval(list(arm.correct.values()), arm.groups)
    num_right = sum(arm.correct.values())
    prompt_tokens = _mean([answer.prompt_tokens for answer in answers])
    completion_tokens = _mean([answer.completion_tokens for answer in answers])
    pairs = zip(arm.texts, arm.outputs, strict=True)
    return {
        "kind": arm.source.kind.value,
        "description": arm.source.description,
        "accuracy": accuracy.estimate,
        "accuracy_lower": accuracy.lower,
        "accuracy_upper": accuracy.upper,
        "label_found": fraction([contains_expected(text, output) for text, output in pairs]),
        "scores": {name: scorer.mean(name, arm) for name in scorer.names if name != Measure.EXACT_MATCH},
        "num_cut": arm.source.num_cut,
        "num_refused": sum(answer.finish_reason == REFUSED for answer in answers),
        "num_failed": arm.source.num_failed,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "tokens_per_right_answer": (
            None
            if prompt_tokens is None or completion_tokens is None or not num_right
            else (prompt_tokens + completion_tokens) * len(answers) / num_right
        ),
        "latency": _latency_figures(arm.source.latency),
        "requests_per_second_at_8": None if arm.source.latency is None else arm.source.latency.requests_per_second_at_8,
        "confusion": _confusion(arm) if Measure.MACRO_F1 in scorer.measures else None,
    }


def difference_figures(difference: Difference) -> dict[str, Any]:
    """A comparison of two arms."""
    return {**asdict(difference), "method": difference.method.value}


def tokens_per_request(figures: Mapping[str, Any]) -> float:
    """Tokens that a request of an arm costs, prompt and completion."""
    return float(figures["prompt_tokens"] + figures["completion_tokens"])


def _mean(counts: Sequence[int | None]) -> float | None:
    """The mean of the known counts; None if none is known."""
    known = [count for count in counts if count is not None]
    return fmean(known) if known else None


def _latency_figures(sample: LatencySample | None) -> dict[str, Any] | None:
    if sample is None or not sample.seconds:
        return None
    figures: dict[str, Any] = {"num_requests": len(sample.seconds)}
    for name, probability in (("p50", 0.5), ("p95", 0.95)):
        found = quantile_interval(sample.seconds, probability)
        figures[name] = {
            "value": found.estimate, "lower": found.lower, "upper": found.upper, "num_needed": found.num_needed,
        }  # fmt: skip
    return figures


def _confusion(arm: ScoredArm) -> dict[str, Any]:
    confusion = count_confusion(arm.texts, arm.outputs)
    return {"labels": list(confusion.labels), "counts": [list(row) for row in confusion.counts]}
