"""Accuracy metrics: which answers count as correct."""

import pytest

from instruct_ray.evidence.metrics import contains_expected, fraction, is_exact, normalize


@pytest.mark.parametrize("answer", ["High", "high", " HIGH.\n", "**High**", "High!"])
def test_exact_match_ignores_case_space_and_punctuation(answer: str) -> None:
    assert is_exact(answer, "High")


@pytest.mark.parametrize("answer", ["", "High or Low", "Highest", "Medium"])
def test_exact_match_needs_the_same_words(answer: str) -> None:
    assert not is_exact(answer, "High")


def test_expected_answer_is_found_as_whole_words() -> None:
    assert contains_expected("The severity is: high, I think", "High")
    assert not contains_expected("the highest one", "High")
    assert contains_expected("Reset\n the   password", "reset the password")


def test_normalize_and_fraction() -> None:
    assert normalize('  "A\n b".') == "a b"
    assert fraction([True, False, True, True]) == 0.75
