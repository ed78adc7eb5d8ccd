"""Statistics are of bounded size and don't depend on how the rows are distributed over tasks."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.data.example import Example
from instruct_ray.data.report.statistics import (
    MAX_KEY_CHARACTERS,
    NUM_SAMPLES,
    Statistics,
    TopCounts,
    report_keys,
    round_length,
)
from instruct_ray.data.sources.triple import Triple


def count_texts(texts: str) -> TopCounts:
    """Count the characters of a string as texts."""
    top_counts = TopCounts()
    for text in texts:
        top_counts.add(text)
    return top_counts


@given(st.text("abcdef"), st.text("uvwxyz"), st.integers(0, 4))
def test_merged_counts_of_disjoint_texts_are_exact(first_texts: str, second_texts: str, limit: int) -> None:
    merged, second = count_texts(first_texts), count_texts(second_texts)
    merged.trim(limit)
    second.trim(limit)
    merged.merge(second)
    merged.trim(limit)
    counts = Counter(first_texts + second_texts)
    assert (merged.num_rows, merged.num_texts) == (counts.total(), len(counts))
    assert len(merged.counts) <= limit
    fractions = [count / counts.total() for count in counts.values()]
    expected = math.exp(-sum(fraction * math.log(fraction) for fraction in fractions)) if counts else 0
    assert merged.perplexity == pytest.approx(expected)


def test_perplexity_is_the_number_of_equally_frequent_texts() -> None:
    assert count_texts("abcd" * 5).perplexity == pytest.approx(4)
    assert count_texts("aaaa").perplexity == pytest.approx(1)


def test_trim_keeps_the_most_frequent_texts() -> None:
    top_counts = count_texts("abbccc")
    top_counts.trim(2)
    assert top_counts.most_frequent() == [("c", 3), ("b", 2)]


def count_rows(numbers: range) -> Statistics:
    statistics = Statistics()
    for number in numbers:
        examples = [Example(f"0:{number}", [1] * (number % 90 + 1), [2] * (number % 3 + 1))]
        statistics.add(f"0:{number}", f"instruction {number // 10}", "ab"[number % 2], examples)
    statistics.trim()
    return statistics


def test_merged_statistics_of_several_tasks_equal_those_of_one() -> None:
    single, merged = count_rows(range(500)), Statistics()
    for start in (200, 0, 400):
        merged.merge(count_rows(range(start, min(start + 200, 500))))
    assert len(single.samples) == NUM_SAMPLES
    assert merged == single


def test_statistics_stay_small_whatever_the_data() -> None:
    statistics = count_rows(range(20_000))
    assert statistics.instructions.num_texts == 2000
    assert len(statistics.instructions.counts) == 100
    assert len(statistics.samples) == NUM_SAMPLES


def test_long_instructions_have_short_and_distinct_keys() -> None:
    texts = ["x" * 10_000, "x" * 10_001]
    keys = [report_keys(Triple("0", text, "input", "answer " * 20)) for text in texts]
    assert keys[0][0] != keys[1][0]
    assert all(len(instruction) < MAX_KEY_CHARACTERS + 20 and answer == "" for instruction, answer in keys)
    assert report_keys(Triple("0", "What?", "", " High\n")) == ("", "High")


@given(st.integers(0, 10**7))
def test_round_length_is_exact_for_short_and_close_for_long_lengths(length: int) -> None:
    rounded = round_length(length)
    assert rounded == length if length < 64 else 0 <= length - rounded < length / 32
