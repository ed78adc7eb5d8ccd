"""Accuracy metrics of answers. Pure functions."""

import re
from collections.abc import Sequence

_PUNCTUATION_AT_ENDS = re.compile(r"^\W+|\W+$")


def normalize(text: str) -> str:
    """Normalize an answer for comparison: case folded, single spaces, no punctuation at either end."""
    return _PUNCTUATION_AT_ENDS.sub("", " ".join(text.casefold().split()))


def is_exact(answer: str, expected: str) -> bool:
    """Whether the answer equals the expected one after normalization."""
    return normalize(answer) == normalize(expected)


def contains_expected(answer: str, expected: str) -> bool:
    """Whether the answer contains the expected one as whole words, after normalization."""
    return re.search(rf"(?<!\w){re.escape(normalize(expected))}(?!\w)", normalize(answer)) is not None


def fraction(values: Sequence[bool]) -> float:
    """Fraction of the values that are true."""
    return sum(values) / len(values)
