"""Parquet and Arrow files -> batches of rows, without running code that a file brings along.

Opening a file runs the Python code registered for the extension types of its columns; Ray's extension types can be made
to unpickle data from the file. The metadata key that declares an extension type is therefore renamed before Arrow sees
it, and such columns are read as their storage type.
"""

import io
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_BATCH = 1024
BATCH_BYTES = 64 * 2**20
PARQUET_MAGIC = b"PAR1"
ARROW_CONTINUATION = b"\xff\xff\xff\xff"
# Metadata keys: of the Arrow schema in a Parquet file, and of an extension type in an Arrow schema.
PARQUET_SCHEMA_KEY = b"ARROW:schema"
EXTENSION_NAME_KEY = b"ARROW:extension:name"


def read_parquet_metadata(stream: Any) -> Any:
    """Read the metadata of a Parquet file, without the Arrow schema that it may contain.

    Raises:
        ArrowException: the file is not Parquet.
    """
    size = stream.size()
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != PARQUET_MAGIC or length + 12 > size:
        raise pa.ArrowInvalid("it does not end like a Parquet file")
    stream.seek(size - 8 - length)
    footer = _rename_key(stream.read(length), PARQUET_SCHEMA_KEY)
    return pq.read_metadata(pa.BufferReader(PARQUET_MAGIC + footer + tail))


def read_parquet_batches(
    stream: Any, first_group: int, end_group: int, columns: Collection[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of the first row, batch) of the row groups from `first_group` up to `end_group`."""
    metadata = read_parquet_metadata(stream)
    file = pq.ParquetFile(stream, metadata=metadata, arrow_extensions_enabled=False)
    groups = range(first_group, end_group)
    num_rows = sum(metadata.row_group(group).num_rows for group in groups)
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in groups)
    # Fewer rows per batch if they are large.
    batch_rows = max(1, min(ROWS_PER_BATCH, BATCH_BYTES * num_rows // max(1, num_bytes)))
    position = sum(metadata.row_group(group).num_rows for group in range(first_group))
    names = _select_columns(file.schema_arrow, columns)
    for batch in file.iter_batches(batch_rows, row_groups=list(groups), columns=names):
        yield position, batch
        position += batch.num_rows


def read_arrow_batches(stream: Any, columns: Collection[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of the first row, batch) of a file in Arrow's stream format, which `datasets` writes."""
    head = stream.read(8)
    length = int.from_bytes(head[4:], "little")
    if head[:4] != ARROW_CONTINUATION or length > stream.size():
        raise pa.ArrowInvalid("it does not start like an Arrow stream")
    schema = _rename_key(stream.read(length), EXTENSION_NAME_KEY)
    position = 0
    with pa.ipc.open_stream(pa.PythonFile(_PrefixedStream(head + schema, stream), mode="r")) as reader:
        names = _select_columns(reader.schema, columns)
        for batch in reader:
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield position + start, batch.select(names).slice(start, ROWS_PER_BATCH)
            position += batch.num_rows


def _rename_key(content: bytes, key: bytes) -> bytes:
    """Replace a metadata key by one of the same length that Arrow does not know."""
    return content.replace(key, key.replace(b":", b"-"))


def _select_columns(schema: pa.Schema, columns: Collection[str]) -> list[str]:
    """Return the names of a schema that are in `columns`.

    Raises:
        ArrowException: two columns have the same name.
    """
    names = [name for name in schema.names if name in columns]
    for name in names:
        if names.count(name) > 1:
            raise pa.ArrowInvalid(f"it has two columns named {name}")
    return names


class _PrefixedStream(io.RawIOBase):
    """Bytes, followed by the rest of a stream."""

    def __init__(self, prefix: bytes, stream: Any) -> None:
        self._prefix, self._stream = prefix, stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._prefix:
            return bytes(self._stream.read(size))
        part, self._prefix = self._prefix[:size], self._prefix[size:]
        if len(part) == size:
            return part
        return part + bytes(self._stream.read(size - len(part)))
