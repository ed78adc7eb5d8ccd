"""The fields of one row by our column names, with checks of their text."""

import reprlib
from collections.abc import Mapping
from typing import Any

from instruct_ray.config.data import ColumnName
from instruct_ray.data.sources.records import RowError

MAX_LISTED_KEYS = 6


class RowFields:
    """A row whose columns are read by our names, whatever the source calls them."""

    __slots__ = ("_columns", "_row")

    def __init__(self, row: Mapping[str, Any], columns: Mapping[ColumnName, str]) -> None:
        self._row, self._columns = row, columns

    def name(self, column: ColumnName) -> str:
        """Return the source's name of a column."""
        return self._columns.get(column, column)

    def __getitem__(self, column: ColumnName) -> Any:
        """Return the value of a column; None if the row does not have it."""
        return self._row.get(self.name(column))

    def get_raw(self, name: str) -> Any:
        """Return the value of a column by the source's own name; None if the row does not have it."""
        return self._row.get(name)

    def require(self, column: ColumnName) -> Any:
        """Return the value of a column.

        Raises:
            RowError: it is missing or null.
        """
        value = self[column]
        if value is None:
            raise RowError("missing_field", f"has no {self.name(column)}{self._list_keys()}")
        return value

    def require_text(self, column: ColumnName, why_required: str) -> str:
        """Return a text that is not blank.

        Raises:
            RowError: it is missing, not text, or blank.
        """
        text = check_text(self.require(column), self.name(column))
        if not text.strip():
            raise RowError("empty_field", f"has an empty {self.name(column)}: {why_required}")
        return text

    def optional_text(self, column: ColumnName) -> str:
        """Return a text, which is empty if it is missing.

        Raises:
            RowError: it is not text.
        """
        value = self[column]
        return "" if value is None else check_text(value, self.name(column))

    def _list_keys(self) -> str:
        keys = [reprlib.repr(key) for key in self._row]
        if not keys:
            return ""
        return f", only {', '.join([*keys[:MAX_LISTED_KEYS], *(['…'] if len(keys) > MAX_LISTED_KEYS else [])])}"


def check_text(value: Any, place: str) -> str:
    """Return a value that is text.

    Raises:
        RowError: it is not, or it has a character that can't be used; names `place`.
    """
    if not isinstance(value, str):
        raise RowError("wrong_type", f"has {place} that is {short_repr(value)}, not text")
    if "\x00" in value:
        raise RowError("control_character", f"has a NUL character in {place}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError("not_unicode", f"has an unpaired surrogate in {place}") from None
    return value


def short_repr(value: Any) -> str:
    """Return type and value in a few words, however large or deeply nested the value is."""
    return "null" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"
