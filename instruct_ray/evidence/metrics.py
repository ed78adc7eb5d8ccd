"""Answers -> numbers. Pure functions."""

import re
from collections.abc import Sequence

_EDGES = re.compile(r"^\W+|\W+$")


def normalise(text: str) -> str:
    """The form in which answers are compared: case folded, inner white space single, no punctuation at either end."""
    return _EDGES.sub("", " ".join(text.casefold().split()))


def is_exact(answer: str, expected: str) -> bool:
    """Whether the answer is the expected one, after normalisation."""
    return normalise(answer) == normalise(expected)


def contains_expected(answer: str, expected: str) -> bool:
    """Whether the expected answer stands anywhere in the answer, as whole words."""
    return re.search(rf"(?<!\w){re.escape(normalise(expected))}(?!\w)", normalise(answer)) is not None


def fraction(hits: Sequence[bool]) -> float:
    """Share of true values."""
    return sum(hits) / len(hits)
