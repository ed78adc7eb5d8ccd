"""The files between the two passes of prepare: rendered rows, dealt to shards, so that a shard is read without the rest.

A piece is one Arrow file with a record batch for each shard. Held-out rows have files of their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from instruct_ray.data.packing import Example
from instruct_ray.data.triples import Triple

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
        "num_prompts": pa.list_(pa.int32()),
        "num_completions": pa.list_(pa.int32()),
        "token_ids": pa.list_(pa.int32()),
    }
)
TEST_SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "digest": pa.binary(32),
        "content": pa.binary(16),
        "num_tokens": pa.int32(),
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
    examples: list[Example]


@dataclass(frozen=True)
class TestRow:
    """A held-out row on its way to `test.jsonl`."""

    row_id: str
    digest: bytes
    content: bytes
    num_tokens: int
    triple: Triple


def write_piece(path: Path, shards: list[list[Row]]) -> None:
    """Write rows by shard."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for rows in shards:
            writer.write_batch(pa.RecordBatch.from_pylist([_values(row) for row in rows], schema=SCHEMA))


def read_shard(folder: Path, shard: int) -> Iterator[Row]:
    """All rows of a shard in the order of their pieces; only the shard's bytes are read."""
    for path in sorted(folder.glob("piece-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(shard)
            tokens = batch["token_ids"]
            flat, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            columns = [batch[name].to_pylist() for name in SCHEMA.names[:-1]]
            for number, (row_id, *values, num_prompts, num_completions) in enumerate(zip(*columns, strict=True)):
                ids = flat[offsets[number] : offsets[number + 1]]
                examples = list(_examples(row_id, ids, num_prompts, num_completions))
                yield Row(row_id, *values, examples)


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


def _values(row: Row) -> dict[str, Any]:
    return {
        **vars(row),
        "num_prompts": [len(example.prompt_ids) for example in row.examples],
        "num_completions": [len(example.completion_ids) for example in row.examples],
        "token_ids": [token for example in row.examples for ids in _parts(example) for token in ids],
    }


def _parts(example: Example) -> tuple[Any, Any]:
    return example.prompt_ids, example.completion_ids


def _examples(row_id: str, ids: Any, num_prompts: list[int], num_completions: list[int]) -> Iterator[Example]:
    start, num_counted = 0, 0
    for turn, (num_prompt, num_completion) in enumerate(zip(num_prompts, num_completions, strict=True)):
        middle, stop = start + num_prompt, start + num_prompt + num_completion
        name = row_id if len(num_prompts) == 1 else f"{row_id}/{turn + 1}"
        yield Example(name, ids[start:middle], ids[middle:stop], num_counted)
        start, num_counted = stop, num_prompt + num_completion
