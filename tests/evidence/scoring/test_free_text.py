"""Token F1 and ROUGE-L of free text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.evidence.scoring.free_text import rouge_l, token_f1


def test_token_f1_as_in_squad() -> None:
    assert token_f1("The Cat sat.", "a cat, sat") == 1
    assert token_f1("the cat sat on the mat", "cat mat") == pytest.approx(2 * 2 / (4 + 2))
    assert token_f1("mat cat", "cat mat") == 1
    assert token_f1("cat cat cat", "cat") == pytest.approx(0.5)
    assert token_f1("don't", "dont") == 1 and token_f1("dog", "cat") == 0


def test_signs_count() -> None:
    assert token_f1("$5", "5") == 0 and token_f1("C++", "C") == 0


def test_rouge_l_keeps_the_order() -> None:
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman police killed", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("", "police") == 0


@pytest.mark.parametrize("score", [token_f1, rouge_l])
def test_other_scripts_have_words(score: object) -> None:
    assert callable(score)
    assert score("καλημέρα κόσμε", "Καλημέρα, κόσμε!") == 1
    assert 0 < score("今天天气很好", "今天天气不好") < 1
    assert score("今天", "明月") == 0


@pytest.mark.parametrize("score", [token_f1, rouge_l])
def test_texts_without_words_are_compared_as_they_are(score: object) -> None:
    assert callable(score)
    assert score("", "") == 1 and score("...", "...") == 1 and score("?", "!") == 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_are_within_0_and_1_and_symmetric(answer: str, expected: str) -> None:
    for score in (token_f1, rouge_l):
        assert 0 <= score(answer, expected) <= 1
        assert score(answer, expected) == pytest.approx(score(expected, answer))
        assert score(answer, answer) == pytest.approx(1)
