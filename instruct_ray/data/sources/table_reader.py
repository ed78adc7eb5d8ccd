"""Parquet and Arrow: rows of tables, restricted to the columns that rows are made from."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from instruct_ray.data.sources.filesystems import open_filesystem
from instruct_ray.data.sources.records import ReadOptions, Record, RowError, not_utf8_error, row_too_large_error
from instruct_ray.data.sources.safe_arrow import read_arrow_batches, read_parquet_batches, read_parquet_metadata
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.errors import InputError, one_line


def split_row_groups(file: SourceFile, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) row groups of chunks.

    Raises:
        InputError: the file is not Parquet.
    """
    filesystem, path = open_filesystem(file.uri)
    try:
        with filesystem.open_input_file(path) as stream:
            metadata = read_parquet_metadata(stream)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"data.sources: {file.uri} can't be read as Parquet: {one_line(error)}") from None
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= chunk_bytes or group + 1 == metadata.num_row_groups:
            yield start, group + 1
            start, size = group + 1, 0


def read_parquet(chunk: Chunk, options: ReadOptions) -> Iterator[Record]:
    """Yield the rows of the chunk's row groups."""
    filesystem, path = open_filesystem(chunk.file.uri)
    with filesystem.open_input_file(path) as stream:
        for first, batch in read_parquet_batches(stream, chunk.start, chunk.end, options.columns):
            yield from _make_records(first, batch, options.max_row_bytes)


def read_arrow(chunk: Chunk, options: ReadOptions) -> Iterator[Record]:
    """Yield all rows of an Arrow stream."""
    filesystem, path = open_filesystem(chunk.file.uri)
    with filesystem.open_input_file(path) as stream:
        for first, batch in read_arrow_batches(stream, options.columns):
            yield from _make_records(first, batch, options.max_row_bytes)


def _make_records(first: int, batch: pa.RecordBatch, max_row_bytes: int) -> Iterator[Record]:
    for number, row in enumerate(_to_rows(batch)):
        if isinstance(row, RowError):
            content = batch.slice(number, 1).serialize().to_pybytes()
        else:
            content = json.dumps(row, sort_keys=True, default=str).encode()
        value = row_too_large_error(max_row_bytes) if len(content) > max_row_bytes else row
        yield Record(first + number, value, hashlib.sha256(content).digest())


def _to_rows(batch: pa.RecordBatch) -> list[Any]:
    """Return the rows of a batch; a row with text that is not UTF-8 becomes a `RowError`."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [not_utf8_error(error)]
        rows = [row for number in range(batch.num_rows) for row in _to_rows(batch.slice(number, 1))]
    return rows
