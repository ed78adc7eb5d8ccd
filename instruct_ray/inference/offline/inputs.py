"""Chunks of files -> parts: rows that are answered together and committed at once. Counted from the data alone, so that
a part is the same rows in every run."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from instruct_ray.config.data import DataConfig
from instruct_ray.data.sources.files import Chunk
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple

# A part ends at so many rows or bytes of text: what a kill loses, and what an engine holds.
BATCH_ROWS = 128
BATCH_BYTES = 2**20


@dataclass(frozen=True)
class InputRow:
    """One input row: what it asks, or why it can't be read."""

    id: str
    """The row's own, or `FILE:POSITION`, the number of its file and where it lies in it."""
    file: str
    offset: int
    """Byte offset in JSONL, line in CSV, else the row's number, all from 0."""
    triple: Triple | None
    """Without its output; None if the row can't be read."""
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class InputBatch:
    """Rows that follow each other in a chunk."""

    chunk: int
    number: int
    """Place in its chunk, from 0."""
    rows: list[InputRow]

    @property
    def name(self) -> str:
        """Its file in the output folder; names sort as the rows do."""
        return f"part-{self.chunk:06d}-{self.number:06d}.jsonl"

    def dump(self) -> dict[str, Any]:
        """As a row of Ray Data."""
        return {
            "chunk": self.chunk,
            "number": self.number,
            "rows": json.dumps([asdict(q) for q in self.rows]),
        }

    @classmethod
    def load(cls, row: dict[str, Any]) -> "InputBatch":
        """The inverse of `dump`."""
        rows = [
            InputRow(**{**values, "triple": values["triple"] and Triple.load(values["triple"])})
            for values in json.loads(row["rows"])
        ]
        return cls(int(row["chunk"]), int(row["number"]), rows)


def split_into_batches(chunk: Chunk, data: DataConfig) -> Iterator[InputBatch]:
    """All rows of a chunk, in order.

    Raises:
        InputError: the file as a whole can't be read.
    """
    number, num_bytes = 0, 0
    held: list[InputRow] = []
    for question in read_input_rows(chunk, data):
        held.append(question)
        num_bytes += 0 if question.triple is None else len(json.dumps(question.triple.dump()))
        if len(held) == BATCH_ROWS or num_bytes >= BATCH_BYTES:
            yield InputBatch(chunk.number, number, held)
            number, num_bytes, held = number + 1, 0, []
    if held:
        yield InputBatch(chunk.number, number, held)


def read_input_rows(chunk: Chunk, data: DataConfig) -> Iterator[InputRow]:
    """The rows of a chunk, one by one.

    Raises:
        InputError: the file as a whole can't be read.
    """
    source = data.sources[chunk.file.source]
    for record in read_records(chunk, data):
        row_id = f"{chunk.file.number}:{record.position}"
        try:
            triple = parse_row(record.value, row_id, source, needs_output=False)
            yield InputRow(triple.id, chunk.file.uri, record.position, triple)
        except RowError as error:
            yield InputRow(row_id, chunk.file.uri, record.position, None, error.reason, error.detail)
