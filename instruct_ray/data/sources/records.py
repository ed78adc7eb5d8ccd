"""What readers hand out: records, each a parsed value or what is wrong with it."""

import io
from typing import Any, NamedTuple

from instruct_ray.data.sources.files import SourceFile
from instruct_ray.data.sources.filesystems import open_filesystem

BUFFER_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DETAIL_CHARACTERS = 300


class RowError(ValueError):
    """A row that can't be used: a short code to count by, and what is wrong in words."""

    def __init__(self, reason: str, detail: str) -> None:
        # Written as UTF-8 later, and shown: a row must not break that by what it holds.
        detail = detail[:MAX_DETAIL_CHARACTERS].encode(errors="backslashreplace").decode()
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


class Record(NamedTuple):
    """One input record."""

    position: int
    """Byte offset in (decompressed) JSONL, the line it begins on in CSV, else the row's number, all from 0."""
    value: Any
    """What was parsed, or the RowError that says why it was not."""
    digest: bytes
    """sha256 of the record's bytes, its line end included; of Parquet and Arrow, of its columns as canonical JSON."""


def open_source_file(file: SourceFile) -> io.BufferedReader:
    """The (decompressed) bytes of a file."""
    filesystem, path = open_filesystem(file.uri)
    stream = (
        filesystem.open_input_file(path)
        if file.compression is None
        else filesystem.open_input_stream(path, compression=file.compression)
    )
    return io.BufferedReader(stream, BUFFER_BYTES)


def row_too_large_error(max_row_bytes: int) -> RowError:
    """What is wrong with a row of more bytes."""
    return RowError("too_large", f"is longer than data.max_row_bytes={max_row_bytes}")


def not_utf8_error(error: UnicodeError) -> RowError:
    """What is wrong with a row of other bytes."""
    return RowError("not_utf8", f"is not UTF-8 ({' '.join(str(error).split()[-3:])}); save the file as UTF-8")
