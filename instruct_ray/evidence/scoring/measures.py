"""Which measures fit the data, and the scores of answers by the measures that score one row at a time. Pure."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from instruct_ray.evidence.metrics import is_exact
from instruct_ray.evidence.scoring.free_text import rouge_l, token_f1
from instruct_ray.evidence.scoring.json_fields import expects_json, score_json
from instruct_ray.evidence.scoring.label_task import find_labels


class Measure(StrEnum):
    """A measure of answers."""

    EXACT_MATCH = "exact_match"
    MACRO_F1 = "macro_f1"
    VALID_JSON = "valid_json"
    FIELD_ACCURACY = "field_accuracy"
    TOKEN_F1 = "token_f1"
    ROUGE_L = "rouge_l"


def choose_measures(held_out_outputs: Sequence[str], train_outputs: Sequence[str] = ()) -> tuple[Measure, ...]:
    """The measures that fit the expected outputs; exact match, which decides the verdict, comes first.

    JSON objects: valid JSON and field accuracy. Labels: macro F1. Anything else is free text: token F1 and ROUGE-L.

    Args:
        held_out_outputs: expected outputs of the held-out rows.
        train_outputs: outputs of training rows. They tell labels where there are few held-out rows.
    """
    if expects_json(held_out_outputs):
        return (Measure.EXACT_MATCH, Measure.VALID_JSON, Measure.FIELD_ACCURACY)
    if find_labels([*held_out_outputs, *train_outputs]) is not None:
        return (Measure.EXACT_MATCH, Measure.MACRO_F1)
    return (Measure.EXACT_MATCH, Measure.TOKEN_F1, Measure.ROUGE_L)


def score_answers(measure: Measure, answers: Sequence[str], expected: Sequence[str]) -> list[float]:
    """Score each answer, in [0, 1]; shape [rows].

    Raises:
        ValueError: the measure is macro F1, which has no score of one row, or the arguments have different lengths.
    """
    if measure is Measure.MACRO_F1:
        raise ValueError("macro F1 is no mean over rows; use label_task.macro_f1")
    if measure is Measure.VALID_JSON:
        return [float(valid) for valid in score_json(answers, expected).valid]
    if measure is Measure.FIELD_ACCURACY:
        return list(score_json(answers, expected).field_accuracy)
    scorers: dict[Measure, Callable[[str, str], float]] = {
        Measure.EXACT_MATCH: is_exact,
        Measure.TOKEN_F1: token_f1,
        Measure.ROUGE_L: rouge_l,
    }
    score = scorers[measure]
    return [float(score(answer, target)) for answer, target in zip(answers, expected, strict=True)]
