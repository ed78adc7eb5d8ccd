"""Chunks of source files -> batches of input rows. Each batch becomes one part file of the output.

Batch boundaries depend on the data alone, so every run splits the same input into the same batches.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from instruct_ray.config.data import DataConfig
from instruct_ray.data.row_id import format_row_id
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.source_file import Chunk
from instruct_ray.data.sources.triple import Triple

# A batch ends at this many rows or bytes of text, whichever comes first: the work that is lost if a worker is killed.
BATCH_ROWS = 128
BATCH_BYTES = 2**20


@dataclass(frozen=True)
class InputRow:
    """One row of the input, parsed, or the reason why it can't be read."""

    id: str
    """The row's own id if it has one, else as `format_row_id` writes it."""
    file: str
    """Path or URI of its source file."""
    offset: int
    """Byte offset in JSONL, line number in CSV, row number in other formats; all from 0."""
    triple: Triple | None
    """The output may be missing; None if the row can't be read."""
    reason: str | None = None
    """A short code for why the row can't be read."""
    detail: str | None = None


@dataclass(frozen=True)
class InputBatch:
    """Consecutive rows of a chunk."""

    chunk: int
    """Number of the chunk."""
    number: int
    """Index of the batch in its chunk."""
    rows: list[InputRow]

    @property
    def part_name(self) -> str:
        """Name of its part file; part names sort in the order of the rows."""
        return f"part-{self.chunk:06d}-{self.number:06d}.jsonl"

    def dump(self) -> dict[str, Any]:
        """Convert the batch to a row of a Ray Dataset."""
        return {"chunk": self.chunk, "number": self.number, "rows": json.dumps([asdict(row) for row in self.rows])}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> "InputBatch":
        """Convert the result of `dump` back to a batch."""
        rows = [
            InputRow(**{**values, "triple": values["triple"] and Triple.load(values["triple"])})
            for values in json.loads(dumped["rows"])
        ]
        return cls(int(dumped["chunk"]), int(dumped["number"]), rows)


def split_into_batches(chunk: Chunk, data: DataConfig) -> Iterator[InputBatch]:
    """Read all rows of a chunk, in order, as batches.

    Raises:
        InputError: the file as a whole can't be read.
    """
    number, num_bytes = 0, 0
    rows: list[InputRow] = []
    for row in read_input_rows(chunk, data):
        rows.append(row)
        num_bytes += 0 if row.triple is None else len(json.dumps(row.triple.dump()))
        if len(rows) == BATCH_ROWS or num_bytes >= BATCH_BYTES:
            yield InputBatch(chunk.number, number, rows)
            number, num_bytes, rows = number + 1, 0, []
    if rows:
        yield InputBatch(chunk.number, number, rows)


def read_input_rows(chunk: Chunk, data: DataConfig) -> Iterator[InputRow]:
    """Read the rows of a chunk, in order.

    Raises:
        InputError: the file as a whole can't be read.
    """
    source = data.sources[chunk.file.source]
    for record in read_records(chunk, data):
        row_id = format_row_id(chunk.file.number, record.position)
        try:
            triple = parse_row(record.value, row_id, source, needs_output=False)
            yield InputRow(triple.id, chunk.file.uri, record.position, triple)
        except RowError as error:
            yield InputRow(row_id, chunk.file.uri, record.position, None, error.reason, error.detail)
