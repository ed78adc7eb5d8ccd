"""What counts as right."""

import pytest

from instruct_ray.evidence.metrics import contains_expected, fraction, is_exact, normalise


@pytest.mark.parametrize("answer", ["High", "high", " HIGH.\n", "**High**", "High!"])
def test_case_space_and_punctuation_do_not_matter(answer: str) -> None:
    assert is_exact(answer, "High")


@pytest.mark.parametrize("answer", ["", "High or Low", "Highest", "Medium"])
def test_anything_else_does(answer: str) -> None:
    assert not is_exact(answer, "High")


def test_found_means_whole_words_anywhere() -> None:
    assert contains_expected("The severity is: high, I think", "High")
    assert not contains_expected("the highest one", "High")
    assert contains_expected("Reset\n the   password", "reset the password")


def test_normalise_and_share() -> None:
    assert normalise('  "A\n b".') == "a b"
    assert fraction([True, False, True, True]) == 0.75
