"""Near duplicates of held-out rows are found, others are not."""

import pickle
import random

import pytest

from instruct_ray.data.near_duplicates import HeldOut

random_source = random.Random(0)
WORDS = ["".join(random_source.choices("abcdefghij", k=5)) for _ in range(500)]
TEXTS = [" ".join(random_source.choices(WORDS, k=40)) + f" {n}" for n in range(300)]


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of pieces of five characters, exact."""
    pieces = [{text[start : start + 5] for start in range(max(1, len(text) - 4))} for text in (one, other)]
    return len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])


def changed(text: str, num_words: int) -> str:
    words = text.split()
    for place in random_source.sample(range(len(words)), num_words):
        words[place] = f"q{place}z"
    return " ".join(words)


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return HeldOut(TEXTS, 0.6)


def test_equal_and_similar_texts_are_found(held_out: HeldOut) -> None:
    assert all(held_out.resembles(text) for text in TEXTS)
    similar = [other for text in TEXTS if similarity(text, other := changed(text, 4)) > 0.7]
    assert len(similar) > 100
    assert sum(held_out.resembles(text) for text in similar) >= 0.99 * len(similar)


def test_other_texts_stay(held_out: HeldOut) -> None:
    others = [changed(text, 25) for text in TEXTS]
    assert not any(held_out.resembles(text) for text in others)


def test_the_threshold_decides() -> None:
    text = TEXTS[0]
    close = changed(text, 4)
    found = similarity(text, close)
    assert HeldOut([text], found - 0.15).resembles(close)
    assert not HeldOut([text], found + 0.15).resembles(close)


@pytest.mark.parametrize(
    ("text", "other", "resembles"), [("a", "a", True), ("a", "b", False), ("é", "é", True), ("abcde", "abcdf", False)]
)
def test_texts_of_one_piece_are_equal_or_not(text: str, other: str, resembles: bool) -> None:
    assert HeldOut([text], 0.8).resembles(other) is resembles


def test_nothing_held_out_resembles_nothing() -> None:
    assert not HeldOut([], 0.8).resembles("a")


def test_it_answers_alike_in_another_process(held_out: HeldOut) -> None:
    again: HeldOut = pickle.loads(pickle.dumps(held_out))
    texts = [changed(text, n % 12) for n, text in enumerate(TEXTS)]
    answers = [held_out.resembles(text) for text in texts]
    assert [again.resembles(text) for text in texts] == answers
    assert 0 < sum(answers) < len(answers)
