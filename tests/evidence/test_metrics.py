"""Accuracy metrics: which answers count as correct."""

from itertools import combinations

import pytest

from instruct_ray.evidence.metrics import contains_expected, fraction, is_exact, normalize


@pytest.mark.parametrize(
    "answer",
    [
        "High",
        "high",
        " HIGH.\n",
        "**High**",
        "High!",
        "“High.”",
        '"High".',
        "`high`;",
        "«High»…",
        "High。",
        "'**High**.'",
    ],
)
def test_exact_match_ignores_case_space_and_punctuation(answer: str) -> None:
    assert is_exact(answer, "High")


@pytest.mark.parametrize("answer", ["", "High or Low", "Highest", "Medium"])
def test_exact_match_needs_the_same_words(answer: str) -> None:
    assert not is_exact(answer, "High")


@pytest.mark.parametrize(
    "answers",
    [
        ("5", "-5", "+5", "±5", "−5", "5%", "$5", "€5", "<5", ">5", "~5", ".5", "5'", '5"', "#5"),
        ("C", "C#", "C++", "c--"),
        ("+", "-", "/", "+/-", "*", "=", "!=", "->", "<-"),
        ("👍", "👎", "", "✓", "✗", "★", "★★", "?", "!", "...", "()", "[]", "{}", '""', "**"),
        ("A", "A*", "a+", "A-", "*a", "__a__", "@a", "&a", ":a", "/a", "a/"),
        ("f(x)", "(x)", "x"),
    ],
)
def test_signs_are_part_of_an_answer(answers: tuple[str, ...]) -> None:
    assert all(is_exact(f" {answer} ", answer) for answer in answers)
    assert not [pair for pair in combinations(answers, 2) if is_exact(*pair)]


def test_expected_answer_is_found_as_whole_words() -> None:
    assert contains_expected("The severity is: high, I think", "High")
    assert not contains_expected("the highest one", "High")
    assert contains_expected("Reset\n the   password", "reset the password")
    assert contains_expected("High (or **Low**)", "low") and contains_expected("(High)", "High")


@pytest.mark.parametrize("answer", ["-5", "it is -5", "5%", "2.5", "5,000", "$5", "5°"])
def test_expected_answer_is_not_found_with_other_signs(answer: str) -> None:
    assert not contains_expected(answer, "5")
    assert contains_expected(f"so {answer}, I think", answer)
    assert contains_expected(f"{answer} or 5.", "5")


def test_normalize_and_fraction() -> None:
    assert normalize('  "A\n b".') == "a b"
    assert fraction([True, False, True, True]) == 0.75
