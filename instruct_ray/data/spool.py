"""The files between the two passes of prepare: rendered rows, dealt to shards so that each is read without the rest.

A piece is one Arrow file with a record batch for each shard. Held-out rows have files of their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from instruct_ray.data.packing import Example, examples_of
from instruct_ray.data.reading.triples import Triple

SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "digest": pa.binary(32),
        "content": pa.binary(16),
        "group": pa.uint64(),
        "split_key": pa.string(),
        "copies": pa.int32(),
        "was_cut": pa.bool_(),
        "num_tokens": pa.int32(),
        "instruction": pa.string(),
        "answer": pa.string(),
        "num_prompts": pa.list_(pa.int32()),
        "num_completions": pa.list_(pa.int32()),
        "token_ids": pa.list_(pa.int32()),
    }
)
# Those before the tokens: the fields of `Row`.
PLAIN_COLUMNS = SCHEMA.names[: SCHEMA.names.index("num_prompts")]
TEST_SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "digest": pa.binary(32),
        "content": pa.binary(16),
        "num_tokens": pa.int32(),
        "was_cut": pa.bool_(),
        "triple": pa.string(),
    }
)


@dataclass(frozen=True)
class Row:
    """A rendered row on its way to a pack."""

    row_id: str
    digest: bytes
    content: bytes
    """Equal for exact duplicates."""
    group: int
    split_key: str
    copies: int
    was_cut: bool
    num_tokens: int
    instruction: str
    """See `statistics.countable`."""
    answer: str
    examples: list[Example]


@dataclass(frozen=True)
class TestRow:
    """A held-out row on its way to `test.jsonl`."""

    row_id: str
    digest: bytes
    content: bytes
    num_tokens: int
    was_cut: bool
    triple: Triple


def write_piece(path: Path, shards: list[list[Row]]) -> None:
    """Write rows by shard."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for rows in shards:
            writer.write_batch(_to_batch(rows))


def read_shard(folder: Path, shard: int) -> Iterator[Row]:
    """All rows of a shard in the order of their pieces; only the shard's bytes are read."""
    for path in sorted(folder.glob("piece-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(shard)
            tokens = batch["token_ids"]
            flat, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            rows = zip(*(batch[name].to_pylist() for name in PLAIN_COLUMNS), strict=True)
            sizes = zip(batch["num_prompts"].to_pylist(), batch["num_completions"].to_pylist(), strict=True)
            for number, (values, (num_prompts, num_completions)) in enumerate(zip(rows, sizes, strict=True)):
                row = dict(zip(PLAIN_COLUMNS, values, strict=True))
                ids = flat[offsets[number] : offsets[number + 1]]
                yield Row(**row, examples=examples_of(row["row_id"], _turns(ids, num_prompts, num_completions)))


def write_test_rows(path: Path, rows: list[TestRow]) -> None:
    """Write held-out rows."""
    values = [{**vars(row), "triple": json.dumps(row.triple.dump(), ensure_ascii=False)} for row in rows]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TEST_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(values, schema=TEST_SCHEMA))


def read_test_rows(folder: Path) -> Iterator[TestRow]:
    """All held-out rows in the order of their pieces."""
    for path in sorted(folder.glob("test-*.arrow")):
        with pa.memory_map(str(path)) as source:
            for values in pa.ipc.open_file(source).read_all().to_pylist():
                yield TestRow(**{**values, "triple": Triple.load(json.loads(values["triple"]))})


def _to_batch(rows: list[Row]) -> pa.RecordBatch:
    columns: list[Any] = [[vars(row)[name] for row in rows] for name in PLAIN_COLUMNS]
    columns.append([[len(example.prompt_ids) for example in row.examples] for row in rows])
    columns.append([[len(example.completion_ids) for example in row.examples] for row in rows])
    columns.append([_tokens(row.examples) for row in rows])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _tokens(examples: list[Example]) -> list[int]:
    tokens: list[int] = []
    for example in examples:
        tokens += example.prompt_ids
        tokens += example.completion_ids
    return tokens


def _turns(ids: Any, num_prompts: list[int], num_completions: list[int]) -> list[tuple[Any, Any]]:
    """A row's tokens, cut into (prompt, completion) of each of its turns."""
    turns, start = [], 0
    for num_prompt, num_completion in zip(num_prompts, num_completions, strict=True):
        middle, stop = start + num_prompt, start + num_prompt + num_completion
        turns.append((ids[start:middle], ids[middle:stop]))
        start = stop
    return turns
