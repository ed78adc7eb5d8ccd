"""CSV and TSV: rows that may span several lines.

A quote that is never closed would swallow all following rows. Instead, only the row with the quote can't be used: the
reader returns to the line after the one on which the row starts.
"""

import csv
import hashlib
import io
from collections import deque
from collections.abc import Iterator
from typing import Any

from instruct_ray.data.sources.csv_delimiter import find_delimiter, parse_separator_line
from instruct_ray.data.sources.records import ReadOptions, Record, RowError, not_utf8_error, row_too_large_error
from instruct_ray.data.sources.source_file import (
    BUFFER_BYTES,
    BYTE_ORDER_MARK,
    Chunk,
    SourceFile,
    open_source_file,
)
from instruct_ray.errors import InputError


def read_csv(chunk: Chunk, options: ReadOptions, default_delimiter: str = ",") -> Iterator[Record]:
    """Yield all records of a file; their positions are numbers of lines.

    Without `options.delimiter`, a `sep=` line or the header decides what separates columns.

    Raises:
        InputError: the file has no usable header, or a quoted field has several lines and exceeds `max_row_bytes`.
    """
    # The module limits single fields; `_LineReader` limits whole records.
    csv.field_size_limit(options.max_row_bytes)
    with open_source_file(chunk.file) as stream:
        lines = _LineReader(stream, chunk.file, options.max_row_bytes)
        rows = csv.reader(lines, delimiter=_find_delimiter(lines, options, default_delimiter), strict=True)
        header = _read_header(rows, lines)
        while True:
            position = lines.start_record()
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                lines.push_back()
                value: Any = RowError("not_csv", f"is not CSV ({error})")
            except RowError as error:
                value = error
            else:
                if not fields:
                    continue
                value = lines.encoding_error or _make_row(header, fields, options)
            yield Record(position, value, lines.digest())


def read_tsv(chunk: Chunk, options: ReadOptions) -> Iterator[Record]:
    """Yield all records of a file whose columns are separated by tabs, unless its header shows otherwise."""
    return read_csv(chunk, options, "\t")


def _find_delimiter(lines: "_LineReader", options: ReadOptions, default: str) -> str:
    """Find the delimiter in the first lines; a `sep=` line is consumed."""
    try:
        line = lines.peek()
    except RowError as error:
        raise _no_header_error(lines.file, error) from None
    separator = parse_separator_line(line)
    if separator is not None:
        lines.start_record()
        next(lines)
    return options.delimiter or separator or find_delimiter(line, options.columns, default)


def _read_header(rows: Iterator[list[str]], lines: "_LineReader") -> list[str]:
    uri = lines.file.uri
    lines.start_record()
    try:
        header = next(rows, [])
    except (csv.Error, RowError) as error:
        raise _no_header_error(lines.file, error) from None
    if lines.encoding_error or any("\x00" in name for name in header):
        raise InputError(f"data.sources: {uri} is not UTF-8; save it as CSV in UTF-8")
    duplicates = [name for name in header if name and header.count(name) > 1]
    if duplicates:
        raise InputError(f"data.sources: {uri} has two columns named {duplicates[0]}")
    return header


def _no_header_error(file: SourceFile, error: Exception) -> InputError:
    return InputError(f"data.sources: {file.uri} does not start with a line of column names ({error})")


def _make_row(header: list[str], fields: list[str], options: ReadOptions) -> Any:
    """Make a row of its fields. Excel leaves out empty fields at the end of a row, and writes some past the header."""
    if len(fields) == len(header):
        return dict(zip(header, fields, strict=True))
    missing = header[len(fields) :]
    if any(fields[len(header) :]) or not options.required_columns.isdisjoint(missing):
        without = f": no {', '.join(name for name in missing if name)}" if missing else ""
        return RowError("not_csv", f"has {len(fields)} columns, but the header has {len(header)}{without}")
    return dict.fromkeys(header, "") | dict(zip(header, fields, strict=False))


class _LineReader:
    """Iterates over lines for `csv.reader` and remembers those of the current record."""

    def __init__(self, stream: io.BufferedReader, file: SourceFile, max_row_bytes: int) -> None:
        self.file = file
        self.encoding_error: RowError | None = None
        """Set if a line of the current record is not UTF-8."""
        self._stream, self._max_row_bytes = stream, max_row_bytes
        self._pushed_back: deque[bytes] = deque()
        self._line_number = 0
        self._record_lines: list[bytes] = []
        self._record_bytes = 0
        self._skipped_digest: Any = None

    def start_record(self) -> int:
        """Start a record; returns the number of its first line, from 0."""
        self._record_lines.clear()
        self._record_bytes, self.encoding_error, self._skipped_digest = 0, None, None
        return self._line_number

    def peek(self) -> str:
        """Return the first line of the file without consuming it, empty if there is none.

        Raises:
            RowError: the line is too large.
        """
        line = next(self, "")
        self._pushed_back.extendleft(self._record_lines)
        self._line_number = 0
        return line

    def push_back(self) -> None:
        """End the current record after its first line; its other lines are read again."""
        self._pushed_back.extendleft(reversed(self._record_lines[1:]))
        self._line_number -= len(self._record_lines) - 1
        del self._record_lines[1:]

    def digest(self) -> bytes:
        """Return the sha256 of the current record's lines."""
        sha256: Any = self._skipped_digest or hashlib.sha256(b"".join(self._record_lines))
        digest: bytes = sha256.digest()
        return digest

    def __iter__(self) -> "_LineReader":
        return self

    def __next__(self) -> str:
        line = self._pushed_back.popleft() if self._pushed_back else self._stream.readline(self._max_row_bytes + 1)
        if not line:
            raise StopIteration
        self._line_number += 1
        self._record_bytes += len(line)
        if self._record_bytes > self._max_row_bytes:
            self._reject_record(line)
        self._record_lines.append(line)
        if self._line_number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.encoding_error = not_utf8_error(error)
            return line.decode(errors="surrogateescape")

    def _reject_record(self, line: bytes) -> None:
        """Skip the rest of a line with which the current record becomes too large.

        Raises:
            RowError: the record is this line only, so the next line starts another one.
            InputError: the record has earlier lines, so its end is unknown.
        """
        if self._record_lines:
            raise InputError(
                f"data.sources: {self.file.uri}: the row on line {self._line_number - len(self._record_lines)} opens "
                f"a quote that is not closed within data.max_row_bytes={self._max_row_bytes}; close it or raise the "
                "limit"
            )
        self._skipped_digest = hashlib.sha256(line)
        while not line.endswith(b"\n") and (line := self._stream.readline(BUFFER_BYTES)):
            self._skipped_digest.update(line)
        raise row_too_large_error(self._max_row_bytes)
