"""Parquet and Arrow files -> rows of plain types: extension types are read as what they are stored as.

Opening a file runs the Python code registered for its extension types; Ray's, for one, can be told to unpickle. So the
note that marks a column as one of them is made illegible before Arrow sees it.
"""

import io
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_BATCH = 1024
BATCH_BYTES = 64 * 2**20
PARQUET_MAGIC = b"PAR1"
PARQUET_SCHEMA = b"ARROW:schema"
EXTENSION_NAME = b"ARROW:extension:name"


def parquet_metadata(stream: Any) -> Any:
    """The metadata of a Parquet file, without the Arrow schema that it may carry.

    Raises:
        ArrowException: it is no Parquet file.
    """
    size = stream.size()
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != PARQUET_MAGIC or length + 12 > size:
        raise pa.ArrowInvalid("it does not end as a Parquet file does")
    stream.seek(size - 8 - length)
    footer = stream.read(length)
    return pq.read_metadata(pa.BufferReader(PARQUET_MAGIC + _disable_extension_types(footer, PARQUET_SCHEMA) + tail))


def parquet_batches(stream: Any, first_group: int, end_group: int, names: Collection[str]) -> Iterator[tuple[int, Any]]:
    """(number of the first row, batch of rows) of some row groups."""
    metadata = parquet_metadata(stream)
    file = pq.ParquetFile(stream, metadata=metadata, arrow_extensions_enabled=False)
    groups = range(first_group, end_group)
    num_rows = sum(metadata.row_group(group).num_rows for group in groups)
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in groups)
    # A batch of rows of many megabytes holds few of them.
    batch_rows = max(1, min(ROWS_PER_BATCH, BATCH_BYTES * num_rows // max(1, num_bytes)))
    position = sum(metadata.row_group(group).num_rows for group in range(first_group))
    columns = _selected(file.schema_arrow, names)
    for batch in file.iter_batches(batch_rows, row_groups=list(groups), columns=columns):
        yield position, batch
        position += batch.num_rows


def arrow_batches(stream: Any, names: Collection[str]) -> Iterator[tuple[int, Any]]:
    """(number of the first row, batch of rows) of an Arrow stream, which is what `datasets` writes."""
    head = stream.read(8)
    length = int.from_bytes(head[4:], "little")
    if head[:4] != b"\xff\xff\xff\xff" or length > stream.size():
        raise pa.ArrowInvalid("it does not begin as an Arrow stream does")
    schema = _disable_extension_types(stream.read(length), EXTENSION_NAME)
    position = 0
    with pa.ipc.open_stream(pa.PythonFile(_Joined(head + schema, stream), mode="r")) as reader:
        columns = _selected(reader.schema, names)
        for batch in reader:
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield position + start, batch.select(columns).slice(start, ROWS_PER_BATCH)
            position += batch.num_rows


def _disable_extension_types(content: bytes, note: bytes) -> bytes:
    return content.replace(note, note.replace(b":", b"-"))


def _selected(schema: pa.Schema, names: Collection[str]) -> list[str]:
    """The columns of these names.

    Raises:
        ArrowException: there are two of one name.
    """
    selected = [name for name in schema.names if name in names]
    for name in selected:
        if selected.count(name) > 1:
            raise pa.ArrowInvalid(f"it has two columns named {name}")
    return selected


class _Joined(io.RawIOBase):
    """Bytes, and a stream behind them."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._first:
            part, self._first = self._first[:size], self._first[size:]
            if len(part) == size:
                return part
            size -= len(part)
            return part + bytes(self._rest.read(size))
        return bytes(self._rest.read(size))
