"""A chunk of a file -> its records, one by one; one that can't be read is one bad row, its neighbours stay good."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from instruct_ray.data.sources import Chunk, SourceFile, open_filesystem
from instruct_ray.errors import InputError

BUFFER_BYTES = 2**20
ROWS_PER_BATCH = 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RowError(ValueError):
    """A row that can't be used: a short code to count by, and what is wrong in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Record(NamedTuple):
    """One input record."""

    position: int
    """Byte offset in (decompressed) JSONL, else the row's number, from 0."""
    value: Any
    """What was parsed, or the RowError that says why it was not."""
    digest: bytes
    """sha256 of the record's bytes (JSONL) or canonical JSON."""


def read(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    """All records of a chunk, in order.

    Raises:
        InputError: the file as a whole can't be read.
    """
    reader: dict[str, Callable[[Chunk, int], Iterator[Record]]] = {
        "jsonl": _read_lines,
        "json": _read_array,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }
    try:
        yield from reader[chunk.file.kind](chunk, max_row_bytes)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"data.sources: {chunk.file.uri} can't be read: {error}") from error


def row_number(file: SourceFile, position: int) -> int:
    """The row's number from 1, as an editor counts lines."""
    if file.kind != "jsonl":
        return position + 1
    with _open(file) as stream:
        num_lines, left = 1, position
        while left and (block := stream.read(min(left, BUFFER_BYTES))):
            num_lines += block.count(b"\n")
            left -= len(block)
    return num_lines


def _open(file: SourceFile) -> io.BufferedReader:
    filesystem, path = open_filesystem(file.uri)
    stream = (
        filesystem.open_input_file(path)
        if file.compression is None
        else filesystem.open_input_stream(path, compression=file.compression)
    )
    return io.BufferedReader(stream, BUFFER_BYTES)


def _read_lines(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    """Lines that begin inside the chunk. They end at line feeds only: others, such as U+2028, are legal in JSON strings."""
    with _open(chunk.file) as stream:
        position = chunk.start
        if position:
            stream.seek(position - 1)
            position += _skip_line(stream, None) - 1
        is_whole = chunk.file.compression is not None
        while is_whole or position < chunk.end:
            line = stream.readline(max_row_bytes + 1)
            if not line:
                return
            start, digest = position, hashlib.sha256(line)
            position += len(line)
            if len(line) > max_row_bytes and not line.endswith(b"\n"):
                position += _skip_line(stream, digest)
                too_large = RowError("too_large", f"is longer than data.max_row_bytes={max_row_bytes}")
                yield Record(start, too_large, digest.digest())
            elif text := (line.removeprefix(BYTE_ORDER_MARK) if start == 0 else line).strip():
                yield Record(start, _parse_json(text), digest.digest())


def _skip_line(stream: io.BufferedReader, digest: Any) -> int:
    """Read to the end of the line without keeping it; returns the number of bytes."""
    skipped = 0
    while part := stream.readline(BUFFER_BYTES):
        skipped += len(part)
        if digest is not None:
            digest.update(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _read_array(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    with _open(chunk.file) as stream:
        content = stream.read().removeprefix(BYTE_ORDER_MARK)
    rows = _parse_json(content)
    if isinstance(rows, RowError):
        raise InputError(f"data.sources: {chunk.file.uri} {rows.detail}; it has to be one JSON array")
    if not isinstance(rows, list):
        raise InputError(f"data.sources: {chunk.file.uri} is {type(rows).__name__}, not a JSON array of rows")
    for number, row in enumerate(rows):
        yield _record(number, row, max_row_bytes)


def _read_csv(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    # Bytes that are no UTF-8 become lone surrogates, which mark their row as bad and no other.
    text = io.TextIOWrapper(_open(chunk.file), encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(max_row_bytes)
    with text:
        rows = csv.DictReader(text)
        for number in range(2**63):
            try:
                row: Any = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                row = RowError("too_large" if "limit" in str(error) else "not_csv", f"is not CSV ({error})")
            else:
                if None in row or None in row.values():
                    row = RowError("not_csv", f"has not as many columns as the header, which has {len(rows.fieldnames or ())}")
            yield _record(number, row, max_row_bytes)


def _read_parquet(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    filesystem, path = open_filesystem(chunk.file.uri)
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        position = sum(file.metadata.row_group(group).num_rows for group in range(chunk.start))
        groups = list(range(chunk.start, chunk.end))
        for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=_plain_columns(file.schema_arrow)):
            yield from _records(batch, position, max_row_bytes)
            position += batch.num_rows


def _read_arrow(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    position = 0
    with pa.memory_map(chunk.file.uri) as source, pa.ipc.open_stream(source) as stream:
        names = _plain_columns(stream.schema)
        for batch in stream:
            yield from _records(batch.select(names), position, max_row_bytes)
            position += batch.num_rows


def _plain_columns(schema: pa.Schema) -> list[str]:
    """Columns of text, numbers, lists and structs; extension types may run code of their own and are never read."""
    return [field.name for field in schema if not isinstance(field.type, pa.BaseExtensionType)]


def _records(batch: pa.RecordBatch, first: int, max_row_bytes: int) -> Iterator[Record]:
    for number, row in enumerate(batch.to_pylist()):
        yield _record(first + number, row, max_row_bytes)


def _record(position: int, row: Any, max_row_bytes: int) -> Record:
    content = json.dumps(row, sort_keys=True, default=str).encode()
    if len(content) > max_row_bytes:
        row = RowError("too_large", f"is longer than data.max_row_bytes={max_row_bytes}")
    return Record(position, row, hashlib.sha256(content).digest())


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object, or what is wrong with it: an error takes the place of the row, and of no other row of an array."""
    values = dict(pairs)
    if len(values) < len(pairs):
        return RowError("duplicate_key", "names a key twice")
    return next((value for value in values.values() if isinstance(value, RowError)), values)


def _constant(name: str) -> RowError:
    return RowError("not_json", f"is not JSON ({name} is none of its values)")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parse_json(content: bytes) -> Any:
    """The value, or the RowError that says why there is none."""
    try:
        return _DECODER.decode(content.decode())
    except UnicodeDecodeError as error:
        return RowError("not_utf8", f"is not UTF-8 ({error.reason} at byte {error.start})")
    except RecursionError:
        return RowError("not_json", "is nested too deeply")
    except ValueError as error:
        return RowError("not_json", f"is not JSON ({error})")
