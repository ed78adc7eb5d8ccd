"""Accuracy metrics of answers. Pure functions."""

import re
from collections.abc import Sequence

# Signs such as - + # % * < and emoji are part of an answer: 5 is not -5, C is not C#. Only these characters are not.
SENTENCE_PUNCTUATION = ".,;:!?…。．，、；：！？"
# Opening and closing quotation marks, and Markdown's marks for bold, italic and code.
ENCLOSING_MARKS = ('""', "''", "“”", "„“", "„”", "‘’", "‚‘", "«»", "»«", "‹›", "「」", "『』", "**", "``")
# What may stand beside an expected answer within a longer one, besides white space and the end.
_NEIGHBORS = re.escape(SENTENCE_PUNCTUATION + "".join(ENCLOSING_MARKS) + "()[]{}/–—")


def normalize(text: str) -> str:
    """Normalize an answer for comparison: case folded, single spaces, no sentence punctuation or quotes around it.

    Punctuation is removed at the end only, since a dot or a colon at the start has a meaning (`.5`, `:)`), and quotes
    only in pairs. An answer of nothing else stays as it is.
    """
    folded = " ".join(text.casefold().split())
    normalized, previous = folded, None
    while normalized != previous:
        previous = normalized
        normalized = _remove_enclosing_marks(normalized.rstrip(SENTENCE_PUNCTUATION).strip()).strip()
    return normalized or folded


def is_exact(answer: str, expected: str) -> bool:
    """Whether the answer equals the expected one after normalization."""
    return normalize(answer) == normalize(expected)


def contains_expected(answer: str, expected: str) -> bool:
    """Whether the answer contains the expected one after normalization, as whole words and with its own signs.

    `5` is neither in `-5` nor in `2.5`.
    """
    pattern = rf"(?<![^\s{_NEIGHBORS}])(?<!\d[.,]){re.escape(normalize(expected))}(?![.,]\d)(?![^\s{_NEIGHBORS}])"
    return re.search(pattern, normalize(answer)) is not None


def fraction(values: Sequence[bool]) -> float:
    """Fraction of the values that are true."""
    return sum(values) / len(values)


def _remove_enclosing_marks(text: str) -> str:
    """Remove the marks around a text, if it has the opening one at its start and the closing one at its end."""
    for marks in ENCLOSING_MARKS:
        if len(text) > 1 and text[0] == marks[0] and text[-1] == marks[1]:
            return text[1:-1]
    return text
