"""A chunk of a file -> its records, one by one; one that can't be read is one bad row, its neighbours stay good."""

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from instruct_ray.config.data import DataConfig
from instruct_ray.data.sources.csv_reader import read_csv
from instruct_ray.data.sources.files import Chunk, SourceFile
from instruct_ray.data.sources.filesystems import open_filesystem
from instruct_ray.data.sources.records import (
    BUFFER_BYTES,
    BYTE_ORDER_MARK,
    Record,
    RowError,
    not_utf8_error,
    open_source_file,
    row_too_large_error,
)
from instruct_ray.data.sources.row_formats import triple_columns
from instruct_ray.data.sources.safe_arrow import arrow_batches, parquet_batches
from instruct_ray.errors import InputError

WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_records(chunk: Chunk, data: DataConfig) -> Iterator[Record]:
    """All records of a chunk, in order.

    Raises:
        InputError: the file as a whole can't be read.
    """
    limit, file = data.max_row_bytes, chunk.file
    try:
        if file.kind == "jsonl":
            yield from _read_lines(chunk, limit)
        elif file.kind == "json":
            yield from _read_array(file, limit)
        elif file.kind == "csv":
            yield from read_csv(file, limit)
        else:
            yield from _read_tables(chunk, triple_columns(data.sources[file.source]), limit)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"data.sources: {file.uri} can't be read: {' '.join(str(error).split())}") from error


def row_number(file: SourceFile, position: int) -> int:
    """The number of the row from 1; of JSONL and CSV, of the line that it begins on, as an editor counts them."""
    if file.kind != "jsonl":
        return position + 1
    with open_source_file(file) as stream:
        num_lines, left = 1, position
        while left and (block := stream.read(min(left, BUFFER_BYTES))):
            num_lines += block.count(b"\n")
            left -= len(block)
    return num_lines


def _read_lines(chunk: Chunk, max_row_bytes: int) -> Iterator[Record]:
    """Lines that begin inside the chunk. They end at line feeds only: U+2028, for one, is legal in a JSON string."""
    end = chunk.end if chunk.file.compression is None else 2**63
    with open_source_file(chunk.file) as stream:
        position = chunk.start
        if position:
            # A line that begins here has a line end before it; one that covers the chunk is left to where it begins.
            stream.seek(position - 1)
            position += _skip_line(stream, None, end - position + 1) - 1
        while position < end and (line := stream.readline(max_row_bytes + 1)):
            start, digest = position, hashlib.sha256(line)
            position += len(line)
            if len(line) > max_row_bytes and not line.endswith(b"\n"):
                position += _skip_line(stream, digest, 2**63)
                yield Record(start, row_too_large_error(max_row_bytes), digest.digest())
            elif text := (line if start else line.removeprefix(BYTE_ORDER_MARK)).strip():
                yield Record(start, _parse_json(text), digest.digest())


def _skip_line(stream: io.BufferedReader, digest: Any, limit: int) -> int:
    """Read to the end of the line, or so many bytes, without keeping them; returns their number."""
    skipped = 0
    while part := stream.readline(min(BUFFER_BYTES, limit - skipped)):
        skipped += len(part)
        if digest is not None:
            digest.update(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _read_array(file: SourceFile, max_row_bytes: int) -> Iterator[Record]:
    """The elements of a JSON array, each parsed on its own."""
    with open_source_file(file) as stream:
        # Bytes that are no UTF-8 become lone surrogates, which mark their row as bad and no other.
        text = stream.read().removeprefix(BYTE_ORDER_MARK).decode(errors="surrogateescape")
    position, number = _skip_whitespace(text, 0), 0
    if text[position : position + 1] != "[":
        hint = "; if each line is an object, name it .jsonl" if text[position : position + 1] == "{" else ""
        raise InputError(f"data.sources: {file.uri} is not a JSON array of rows{hint}")
    position = _skip_whitespace(text, position + 1)
    while text[position : position + 1] != "]" or number:
        end = _element_end(file, text, position, number)
        content = text[position:end].encode(errors="surrogateescape")
        value = row_too_large_error(max_row_bytes) if len(content) > max_row_bytes else _parse_json(content)
        yield Record(number, value, hashlib.sha256(content).digest())
        position = _skip_whitespace(text, end)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise _broken_array_error(file, number, "neither ',' nor ']' follows it")
        position, number = _skip_whitespace(text, position + 1), number + 1
    if text[position + 1 :].strip():
        raise _broken_array_error(file, number, "more stands behind the closing ']'")


def _skip_whitespace(text: str, position: int) -> int:
    match = WHITESPACE.match(text, position)
    return match.end() if match else position


def _element_end(file: SourceFile, text: str, position: int, number: int) -> int:
    try:
        _, end = _LENIENT.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise _broken_array_error(file, number, error.msg) from None
    except RecursionError:
        raise _broken_array_error(file, number, "it is nested too deeply") from None
    return end


def _broken_array_error(file: SourceFile, number: int, reason: str) -> InputError:
    return InputError(f"data.sources: {file.uri} is a broken JSON array: row {number + 1}: {reason}")


def _read_tables(chunk: Chunk, columns: Collection[str], max_row_bytes: int) -> Iterator[Record]:
    """Rows of Parquet and Arrow; only the columns that a triple is made of, since others may be of any size."""
    filesystem, path = open_filesystem(chunk.file.uri)
    with filesystem.open_input_file(path) as stream:
        if chunk.file.kind == "parquet":
            batches = parquet_batches(stream, chunk.start, chunk.end, columns)
        else:
            batches = arrow_batches(stream, columns)
        for first, batch in batches:
            for number, row in enumerate(_rows(batch)):
                if isinstance(row, RowError):
                    content = batch.slice(number, 1).serialize().to_pybytes()
                else:
                    content = json.dumps(row, sort_keys=True, default=str).encode()
                if len(content) > max_row_bytes:
                    row = row_too_large_error(max_row_bytes)
                yield Record(first + number, row, hashlib.sha256(content).digest())


def _rows(batch: pa.RecordBatch) -> list[Any]:
    """The rows of a batch; one whose text is not text is a RowError."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [not_utf8_error(error)]
        rows = [row for number in range(batch.num_rows) for row in _rows(batch.slice(number, 1))]
    return rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RowError("duplicate_key", "names a key twice")
    return values


def _constant(name: str) -> Any:
    raise RowError("not_json", f"is not JSON ({name} is none of its values)")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
# Finds where a value ends, whatever it is.
_LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)


def _parse_json(content: bytes) -> Any:
    """The value, or the RowError that says why there is none."""
    try:
        text = content.decode()
        value, end = _DECODER.raw_decode(text)
    except RowError as error:
        return error
    except json.JSONDecodeError as error:
        return RowError("not_json", f"is not JSON ({error.msg} at character {error.pos + 1})")
    except UnicodeDecodeError as error:
        return not_utf8_error(error)
    except RecursionError:
        return RowError("not_json", "is nested too deeply")
    except ValueError as error:
        return RowError("not_json", f"is not JSON ({error})")
    if end < len(text):
        return RowError("not_json", f"is not JSON (more behind its end, at character {end + 1})")
    return value
