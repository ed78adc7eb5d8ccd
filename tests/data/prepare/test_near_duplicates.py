"""Near duplicates of held-out rows are found, others are not."""

import pickle
import random

import numpy as np
import pytest

from instruct_ray.data.prepare.near_duplicates import NUM_PERMUTATIONS, NearDuplicateIndex, UInt32s, minhash_signature

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


def hold_out(texts: list[str], threshold: float) -> NearDuplicateIndex:
    signatures: UInt32s = np.array([minhash_signature(text) for text in texts], np.uint32).reshape(-1, NUM_PERMUTATIONS)
    return NearDuplicateIndex(signatures, threshold)


@pytest.fixture(scope="module")
def held_out() -> NearDuplicateIndex:
    return hold_out(TEXTS, 0.6)


def test_equal_and_similar_texts_are_found(held_out: NearDuplicateIndex) -> None:
    assert held_out.find_similar(TEXTS) == set(TEXTS)
    similar = [other for text in TEXTS if similarity(text, other := changed(text, 4)) > 0.7]
    assert len(similar) > 100
    assert len(held_out.find_similar(similar)) >= 0.99 * len(similar)


def test_other_texts_stay(held_out: NearDuplicateIndex) -> None:
    assert not held_out.find_similar([changed(text, 25) for text in TEXTS])


def test_the_threshold_decides() -> None:
    text = TEXTS[0]
    close = changed(text, 4)
    found = similarity(text, close)
    assert hold_out([text], found - 0.15).find_similar([close])
    assert not hold_out([text], found + 0.15).find_similar([close])


@pytest.mark.parametrize(
    ("text", "other", "resembles"), [("a", "a", True), ("a", "b", False), ("é", "é", True), ("abcde", "abcdf", False)]
)
def test_texts_of_one_piece_are_equal_or_not(text: str, other: str, resembles: bool) -> None:
    assert bool(hold_out([text], 0.8).find_similar([other])) is resembles


def test_nothing_resembles_nothing(held_out: NearDuplicateIndex) -> None:
    assert not hold_out([], 0.8).find_similar(["a"])
    assert not held_out.find_similar([])


def test_the_index_misses_nothing_that_comparing_all_finds(held_out: NearDuplicateIndex) -> None:
    texts = [changed(text, n % 12) for n, text in enumerate(TEXTS)]
    signatures = np.array([minhash_signature(text) for text in TEXTS])
    near = {text for text in texts if (signatures == minhash_signature(text)).mean(axis=1).max() >= 0.6}
    found = held_out.find_similar(texts)
    assert found <= near
    assert len(found) >= 0.99 * len(near)


def test_it_answers_alike_in_another_process(held_out: NearDuplicateIndex) -> None:
    again: NearDuplicateIndex = pickle.loads(pickle.dumps(held_out))
    texts = [changed(text, n % 12) for n, text in enumerate(TEXTS)]
    found = held_out.find_similar(texts)
    assert again.find_similar(texts) == found
    assert 0 < len(found) < len(texts)
