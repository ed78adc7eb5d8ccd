"""Counts are bounded, and do not depend on how the rows are dealt to tasks."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.data.example import Example
from instruct_ray.data.report.statistics import (
    MAX_NAME_CHARACTERS,
    NUM_SAMPLES,
    Statistics,
    TopCounts,
    report_keys,
    round_length,
)
from instruct_ray.data.sources.triple import Triple


def tally(texts: str) -> TopCounts:
    found = TopCounts()
    for text in texts:
        found.add(text)
    return found


@given(st.text("abcdef"), st.text("uvwxyz"), st.integers(0, 4))
def test_tasks_with_texts_of_their_own_add_up_to_one(one: str, other: str, limit: int) -> None:
    first, second = tally(one), tally(other)
    first.trim(limit), second.trim(limit)
    first.merge(second)
    first.trim(limit)
    counts = Counter(one + other)
    assert (first.num_rows, first.num_texts) == (counts.total(), len(counts))
    assert len(first.named) <= limit
    shares = [count / counts.total() for count in counts.values()]
    expected = math.exp(-sum(share * math.log(share) for share in shares)) if counts else 0
    assert first.perplexity == pytest.approx(expected)


def test_equally_frequent_texts_count_in_full_and_a_single_one_as_one() -> None:
    assert tally("abcd" * 5).perplexity == pytest.approx(4)
    assert tally("aaaa").perplexity == pytest.approx(1)


def test_the_most_frequent_keep_their_names() -> None:
    found = tally("abbccc")
    found.trim(2)
    assert found.most_frequent() == [("c", 3), ("b", 2)]


def count(numbers: range) -> Statistics:
    statistics = Statistics()
    for number in numbers:
        examples = [Example(f"0:{number}", [1] * (number % 90 + 1), [2] * (number % 3 + 1))]
        statistics.add(f"0:{number}", f"instruction {number // 10}", "ab"[number % 2], examples)
    statistics.trim()
    return statistics


def test_rows_dealt_to_tasks_make_the_same_counts_and_samples() -> None:
    whole, parts = count(range(500)), Statistics()
    for start in (200, 0, 400):
        parts.merge(count(range(start, min(start + 200, 500))))
    assert len(whole.samples) == NUM_SAMPLES
    assert parts == whole


def test_counts_stay_small_whatever_the_data() -> None:
    statistics = count(range(20_000))
    assert statistics.instructions.num_texts == 2000
    assert len(statistics.instructions.named) == 100
    assert len(statistics.samples) == NUM_SAMPLES


def test_long_instructions_are_told_apart_without_being_kept() -> None:
    texts = ["x" * 10_000, "x" * 10_001]
    names = [report_keys(Triple("0", text, "input", "answer " * 20)) for text in texts]
    assert names[0][0] != names[1][0]
    assert all(len(name) < MAX_NAME_CHARACTERS + 20 and answer == "" for name, answer in names)
    assert report_keys(Triple("0", "What?", "", " High\n")) == ("", "High")


@given(st.integers(0, 10**7))
def test_lengths_are_exact_when_small_and_close_when_large(length: int) -> None:
    rounded = round_length(length)
    assert rounded == length if length < 64 else 0 <= length - rounded < length / 32
