"""Which measures fit the data."""

import pytest

from instruct_ray.evidence.scoring.measures import Measure, choose_measures, score_answers


def test_measures_fit_the_outputs() -> None:
    labels = ["high", "low"] * 20
    assert choose_measures(labels) == (Measure.EXACT_MATCH, Measure.MACRO_F1)
    assert choose_measures(labels[:6], labels) == (Measure.EXACT_MATCH, Measure.MACRO_F1)
    text = [f"a text about {index}" for index in range(40)]
    assert choose_measures(text) == (Measure.EXACT_MATCH, Measure.TOKEN_F1, Measure.ROUGE_L)
    # JSON even if it repeats as labels do.
    assert choose_measures(['{"a": 1}', '{"a": 2}'] * 20) == (
        Measure.EXACT_MATCH,
        Measure.VALID_JSON,
        Measure.FIELD_ACCURACY,
    )


def test_scores() -> None:
    assert score_answers(Measure.EXACT_MATCH, ["High.", "no"], ["high", "high"]) == [1.0, 0.0]
    assert score_answers(Measure.TOKEN_F1, ["a cat"], ["cat"]) == [1.0]
    assert score_answers(Measure.ROUGE_L, ["cat"], ["dog"]) == [0.0]
    assert score_answers(Measure.VALID_JSON, ["{}", "no"], ["{}", "{}"]) == [1.0, 0.0]
    assert score_answers(Measure.FIELD_ACCURACY, ['{"a": 1}'], ['{"a": 1, "b": 2}']) == [0.5]
    with pytest.raises(ValueError, match="macro F1 is no mean"):
        score_answers(Measure.MACRO_F1, ["a"], ["a"])
