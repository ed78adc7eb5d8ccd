"""Chunks of files -> parts: rows that are answered together and committed at once. Counted from the data alone, so that
a part is the same rows in every run."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from instruct_ray.config import DataConfig
from instruct_ray.data.reading import readers
from instruct_ray.data.reading.records import RowError
from instruct_ray.data.reading.sources import Chunk
from instruct_ray.data.reading.triples import Triple, parse

# A part ends at so many rows or bytes of text: what a kill loses, and what an engine holds.
PART_ROWS = 128
PART_BYTES = 2**20


@dataclass(frozen=True)
class Question:
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
class Part:
    """Rows that follow each other in a chunk."""

    chunk: int
    number: int
    """Place in its chunk, from 0."""
    questions: list[Question]

    @property
    def name(self) -> str:
        """Its file in the output folder; names sort as the rows do."""
        return f"part-{self.chunk:06d}-{self.number:06d}.jsonl"

    def dump(self) -> dict[str, Any]:
        """As a row of Ray Data."""
        return {
            "chunk": self.chunk,
            "number": self.number,
            "questions": json.dumps([asdict(q) for q in self.questions]),
        }

    @classmethod
    def load(cls, row: dict[str, Any]) -> "Part":
        """The inverse of `dump`."""
        questions = [
            Question(**{**values, "triple": values["triple"] and Triple.load(values["triple"])})
            for values in json.loads(row["questions"])
        ]
        return cls(int(row["chunk"]), int(row["number"]), questions)


def parts(chunk: Chunk, data: DataConfig) -> Iterator[Part]:
    """All rows of a chunk, in order.

    Raises:
        InputError: the file as a whole can't be read.
    """
    number, num_bytes = 0, 0
    held: list[Question] = []
    for question in questions(chunk, data):
        held.append(question)
        num_bytes += 0 if question.triple is None else len(json.dumps(question.triple.dump()))
        if len(held) == PART_ROWS or num_bytes >= PART_BYTES:
            yield Part(chunk.number, number, held)
            number, num_bytes, held = number + 1, 0, []
    if held:
        yield Part(chunk.number, number, held)


def questions(chunk: Chunk, data: DataConfig) -> Iterator[Question]:
    """The rows of a chunk, one by one.

    Raises:
        InputError: the file as a whole can't be read.
    """
    source = data.sources[chunk.file.source]
    for record in readers.read(chunk, data):
        row_id = f"{chunk.file.number}:{record.position}"
        try:
            triple = parse(record.value, row_id, source, needs_output=False)
            yield Question(triple.id, chunk.file.uri, record.position, triple)
        except RowError as error:
            yield Question(row_id, chunk.file.uri, record.position, None, error.reason, error.detail)
