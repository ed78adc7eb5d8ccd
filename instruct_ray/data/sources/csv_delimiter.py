"""Which character separates the columns of a CSV file: Excel writes semicolons or tabs where a comma is decimal."""

import csv
import re
from collections.abc import Collection

DELIMITERS = (",", ";", "\t", "|")
# A first line that names the delimiter, as Excel reads and writes it.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)


def parse_separator_line(line: str) -> str | None:
    """Return the delimiter that a line such as `sep=;` names; None for any other line."""
    match = _SEPARATOR_LINE.fullmatch(line)
    return match[1] if match else None


def find_delimiter(header: str, columns: Collection[str], default: str) -> str:
    """Find the delimiter of a header line.

    It is the one that separates the most names in `columns`. If the header has none of them, it is the default one if
    there are several names, else the one that separates the most.
    """
    candidates = [default, *(delimiter for delimiter in DELIMITERS if delimiter != default)]
    names = {delimiter: _split(header, delimiter) for delimiter in candidates}
    num_known = {delimiter: len(names[delimiter] & set(columns)) for delimiter in candidates}
    if any(num_known.values()):
        return max(candidates, key=lambda delimiter: num_known[delimiter])
    if len(names[default]) > 1:
        return default
    return max(candidates, key=lambda delimiter: len(names[delimiter]))


def _split(header: str, delimiter: str) -> set[str]:
    try:
        return set(next(csv.reader([header], delimiter=delimiter, strict=True), []))
    except csv.Error:
        return set()
