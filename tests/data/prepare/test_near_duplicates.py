"""Near duplicates of held-out texts are found, other texts are not."""

import pickle
import random

import numpy as np
import pytest

from instruct_ray.data.prepare.near_duplicates import NUM_PERMUTATIONS, NearDuplicateIndex, UInt32s, minhash_signature

random_source = random.Random(0)
WORDS = ["".join(random_source.choices("abcdefghij", k=5)) for _ in range(500)]
TEXTS = [" ".join(random_source.choices(WORDS, k=40)) + f" {n}" for n in range(300)]


def compute_similarity(first: str, second: str) -> float:
    """Exact Jaccard similarity of the shingles of two texts."""
    shingles = [{text[start : start + 5] for start in range(max(1, len(text) - 4))} for text in (first, second)]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


def replace_words(text: str, num_words: int) -> str:
    words = text.split()
    for index in random_source.sample(range(len(words)), num_words):
        words[index] = f"q{index}z"
    return " ".join(words)


def build_index(texts: list[str], threshold: float) -> NearDuplicateIndex:
    signatures: UInt32s = np.array([minhash_signature(text) for text in texts], np.uint32).reshape(-1, NUM_PERMUTATIONS)
    return NearDuplicateIndex(signatures, threshold)


@pytest.fixture(scope="module")
def index() -> NearDuplicateIndex:
    return build_index(TEXTS, 0.6)


def test_equal_and_similar_texts_are_found(index: NearDuplicateIndex) -> None:
    assert index.find_similar(TEXTS) == set(TEXTS)
    similar = [variant for text in TEXTS if compute_similarity(text, variant := replace_words(text, 4)) > 0.7]
    assert len(similar) > 100
    assert len(index.find_similar(similar)) >= 0.99 * len(similar)


def test_dissimilar_texts_are_not_found(index: NearDuplicateIndex) -> None:
    assert not index.find_similar([replace_words(text, 25) for text in TEXTS])


def test_the_threshold_decides() -> None:
    text = TEXTS[0]
    variant = replace_words(text, 4)
    similarity = compute_similarity(text, variant)
    assert build_index([text], similarity - 0.15).find_similar([variant])
    assert not build_index([text], similarity + 0.15).find_similar([variant])


@pytest.mark.parametrize(
    ("text", "query", "is_similar"), [("a", "a", True), ("a", "b", False), ("é", "é", True), ("abcde", "abcdf", False)]
)
def test_texts_of_one_shingle_are_similar_only_if_equal(text: str, query: str, is_similar: bool) -> None:
    assert bool(build_index([text], 0.8).find_similar([query])) is is_similar


def test_empty_index_and_empty_query_find_nothing(index: NearDuplicateIndex) -> None:
    assert not build_index([], 0.8).find_similar(["a"])
    assert not index.find_similar([])


def test_the_index_finds_what_comparing_all_signatures_finds(index: NearDuplicateIndex) -> None:
    texts = [replace_words(text, n % 12) for n, text in enumerate(TEXTS)]
    signatures = np.array([minhash_signature(text) for text in TEXTS])
    expected = {text for text in texts if (signatures == minhash_signature(text)).mean(axis=1).max() >= 0.6}
    similar = index.find_similar(texts)
    assert similar <= expected
    assert len(similar) >= 0.99 * len(expected)


def test_a_pickled_index_gives_the_same_answers(index: NearDuplicateIndex) -> None:
    copy: NearDuplicateIndex = pickle.loads(pickle.dumps(index))
    texts = [replace_words(text, n % 12) for n, text in enumerate(TEXTS)]
    similar = index.find_similar(texts)
    assert copy.find_similar(texts) == similar
    assert 0 < len(similar) < len(texts)
