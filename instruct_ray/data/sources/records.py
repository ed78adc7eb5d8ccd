"""What readers take and return: options, and records with the errors of single rows."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_DETAIL_CHARACTERS = 300


@dataclass(frozen=True)
class ReadOptions:
    """What the reader of a file format needs besides the chunk."""

    columns: Collection[str]
    """Columns that rows are made from; a reader of tables skips all others."""
    max_row_bytes: int
    """Larger rows are not parsed and become a `RowError`."""
    required_columns: frozenset[str] = frozenset()
    """Columns that a row of a CSV file must reach; the ones after them may be left out where they are empty."""
    delimiter: str | None = None
    """Separator of the columns of a CSV file; None if the file decides."""
    sample_bytes: int | None = None
    """Bytes at the start of a JSONL chunk that are read, up to a row that is too large; None reads all."""


class RowError(ValueError):
    """A row that can't be used: a short code to count by, and the reason in words."""

    def __init__(self, reason: str, detail: str) -> None:
        # The detail quotes the row, is printed and is stored as UTF-8: make it short and encodable.
        detail = detail[:MAX_DETAIL_CHARACTERS].encode(errors="backslashreplace").decode()
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


class Record(NamedTuple):
    """One input record."""

    position: int
    """Byte offset in (decompressed) JSONL, number of the first line in CSV, otherwise the row number; all from 0."""
    value: Any
    """The parsed value, or a `RowError` if it can't be read."""
    digest: bytes
    """sha256 of the record's bytes with its line end; for Parquet and Arrow, of its columns as canonical JSON."""


def row_too_large_error(max_row_bytes: int) -> RowError:
    """Make the error of a row that has more than `max_row_bytes`."""
    return RowError("too_large", f"is longer than data.max_row_bytes={max_row_bytes}")


def not_utf8_error(error: UnicodeError) -> RowError:
    """Make the error of a row that can't be decoded."""
    return RowError("not_utf8", f"is not UTF-8 ({' '.join(str(error).split()[-3:])}); save the file as UTF-8")
