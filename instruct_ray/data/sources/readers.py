"""A chunk of a file -> its records. A row that can't be read becomes a `RowError` and does not affect its neighbors."""

from collections.abc import Iterator

import pyarrow as pa

from instruct_ray.config.data import DataConfig
from instruct_ray.data.sources.file_formats import FILE_FORMATS
from instruct_ray.data.sources.records import ReadOptions, Record
from instruct_ray.data.sources.row_formats import find_required_columns, find_row_columns
from instruct_ray.data.sources.source_file import BUFFER_BYTES, Chunk, SourceFile, open_source_file
from instruct_ray.errors import InputError, one_line


def read_records(chunk: Chunk, data: DataConfig, *, sample_bytes: int | None = None) -> Iterator[Record]:
    """Yield all records of a chunk, in order; with `sample_bytes`, JSONL yields only those at its start.

    Raises:
        InputError: the file as a whole can't be read; names it.
    """
    file = chunk.file
    source = data.sources[file.source]
    options = ReadOptions(
        columns=find_row_columns(source),
        max_row_bytes=data.max_row_bytes,
        required_columns=find_required_columns(source),
        delimiter=source.delimiter,
        sample_bytes=sample_bytes,
    )
    try:
        yield from FILE_FORMATS[file.format].read(chunk, options)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"data.sources: {file.uri} can't be read: {one_line(error)}") from error


def row_number(file: SourceFile, position: int) -> int:
    """Return the number of a row as an editor counts it, from 1: its first line in JSONL and CSV."""
    if not FILE_FORMATS[file.format].has_byte_positions:
        return position + 1
    with open_source_file(file) as stream:
        num_lines, num_left = 1, position
        while num_left and (block := stream.read(min(num_left, BUFFER_BYTES))):
            num_lines += block.count(b"\n")
            num_left -= len(block)
    return num_lines
