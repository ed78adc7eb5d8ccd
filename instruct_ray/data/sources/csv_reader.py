"""CSV -> records. A quote that is never closed costs its own row: what it swallowed is read again, line by line."""

import csv
import hashlib
import io
from collections import deque
from collections.abc import Iterator
from typing import Any

from instruct_ray.data.sources.files import SourceFile
from instruct_ray.data.sources.records import (
    BUFFER_BYTES,
    BYTE_ORDER_MARK,
    Record,
    RowError,
    not_utf8_error,
    open_source_file,
    row_too_large_error,
)
from instruct_ray.errors import InputError


def read_csv(file: SourceFile, max_row_bytes: int) -> Iterator[Record]:
    """All records of a file.

    Raises:
        InputError: it has no header, or a quoted field of several lines is too long to know where it ends.
    """
    # The limit of the module's own is on one field; the one on a record is kept by the lines.
    csv.field_size_limit(max_row_bytes)
    with open_source_file(file) as stream:
        lines = _Lines(stream, file, max_row_bytes)
        rows = csv.reader(lines, strict=True)
        header = _header(rows, lines)
        while True:
            first = lines.begin()
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                lines.give_back()
                value: Any = RowError("not_csv", f"is not CSV ({error})")
            except RowError as error:
                value = error
            else:
                if not fields:
                    continue
                value = lines.problem() or _value(header, fields)
            yield Record(first, value, lines.digest())


def _header(rows: Iterator[list[str]], lines: "_Lines") -> list[str]:
    uri = lines.file.uri
    lines.begin()
    try:
        header = next(rows, [])
    except (csv.Error, RowError) as error:
        detail = error.detail if isinstance(error, RowError) else error
        raise InputError(f"data.sources: {uri} does not begin with a line of column names ({detail})") from None
    if lines.problem() or any("\x00" in name for name in header):
        raise InputError(f"data.sources: {uri} is not UTF-8; save it as CSV in UTF-8")
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise InputError(f"data.sources: {uri} has two columns named {twice[0]}")
    return header


def _value(header: list[str], fields: list[str]) -> Any:
    if len(fields) != len(header):
        return RowError("not_csv", f"has {len(fields)} columns, the header {len(header)}")
    return dict(zip(header, fields, strict=True))


class _Lines:
    """The lines that `csv.reader` takes, with those of the record that it is at."""

    def __init__(self, stream: io.BufferedReader, file: SourceFile, max_row_bytes: int) -> None:
        self.file = file
        self._stream, self._max_row_bytes = stream, max_row_bytes
        self._again: deque[bytes] = deque()
        self._number = 0
        self._record: list[bytes] = []
        self._num_bytes = 0
        self._problem: RowError | None = None
        self._skipped: Any = None

    def begin(self) -> int:
        """Begin a record; returns the number of its first line, from 0."""
        self._record.clear()
        self._num_bytes, self._problem, self._skipped = 0, None, None
        return self._number

    def give_back(self) -> None:
        """End the record behind its first line."""
        self._again.extendleft(reversed(self._record[1:]))
        self._number -= len(self._record) - 1
        del self._record[1:]

    def problem(self) -> RowError | None:
        """What is wrong with the record's bytes."""
        return self._problem

    def digest(self) -> bytes:
        """sha256 of the record's lines."""
        whole: Any = self._skipped or hashlib.sha256(b"".join(self._record))
        digest: bytes = whole.digest()
        return digest

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._stream.readline(self._max_row_bytes + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._num_bytes += len(line)
        if self._num_bytes > self._max_row_bytes:
            self._refuse(line)
        self._record.append(line)
        if self._number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self._problem = not_utf8_error(error)
            return line.decode(errors="surrogateescape")

    def _refuse(self, line: bytes) -> None:
        """Pass over a line that is too long.

        Raises:
            RowError: it is a record of its own, so the next line begins another.
            InputError: it is not.
        """
        if self._record:
            raise InputError(
                f"data.sources: {self.file.uri}: the row on line {self._number - len(self._record)} opens a quote that "
                f"is not closed within data.max_row_bytes={self._max_row_bytes}; close it or raise the limit"
            )
        self._skipped = hashlib.sha256(line)
        while not line.endswith(b"\n") and (line := self._stream.readline(BUFFER_BYTES)):
            self._skipped.update(line)
        raise row_too_large_error(self._max_row_bytes)
