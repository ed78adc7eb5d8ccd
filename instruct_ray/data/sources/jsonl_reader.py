"""JSON Lines: one JSON value per line, read in chunks of bytes."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

from instruct_ray.data.sources.json_parser import parse_json
from instruct_ray.data.sources.records import ReadOptions, Record, row_too_large_error
from instruct_ray.data.sources.source_file import (
    BUFFER_BYTES,
    BYTE_ORDER_MARK,
    Chunk,
    SourceFile,
    open_source_file,
)

NO_LIMIT = 2**63


def split_jsonl(file: SourceFile, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) bytes of chunks; a compressed file is one chunk."""
    if file.compression is not None:
        yield 0, file.size
        return
    for start in range(0, file.size, chunk_bytes):
        yield start, min(start + chunk_bytes, file.size)


def read_jsonl(chunk: Chunk, options: ReadOptions) -> Iterator[Record]:
    """Yield the lines that start inside the chunk.

    Only a line feed ends a line: other line separators, such as U+2028, are legal inside a JSON string.
    """
    max_row_bytes = options.max_row_bytes
    end = chunk.end if chunk.file.compression is None else NO_LIMIT
    if options.sample_bytes is not None:
        end = min(end, chunk.start + options.sample_bytes)
    with open_source_file(chunk.file) as stream:
        position = chunk.start
        if position:
            # A line starts here only if a line feed precedes it. A line that started earlier belongs to its own chunk.
            stream.seek(position - 1)
            position += _skip_line(stream, None, end - position + 1) - 1
        while position < end and (line := stream.readline(max_row_bytes + 1)):
            start, digest = position, hashlib.sha256(line)
            position += len(line)
            if len(line) > max_row_bytes and not line.endswith(b"\n"):
                if options.sample_bytes is not None:
                    return
                position += _skip_line(stream, digest, NO_LIMIT)
                yield Record(start, row_too_large_error(max_row_bytes), digest.digest())
            elif text := (line if start else line.removeprefix(BYTE_ORDER_MARK)).strip():
                yield Record(start, parse_json(text), digest.digest())


def _skip_line(stream: io.BufferedReader, digest: Any, limit: int) -> int:
    """Read to the end of the line, at most `limit` bytes, without keeping it; returns the number of bytes."""
    num_skipped = 0
    while part := stream.readline(min(BUFFER_BYTES, limit - num_skipped)):
        num_skipped += len(part)
        if digest is not None:
            digest.update(part)
        if part.endswith(b"\n"):
            break
    return num_skipped
