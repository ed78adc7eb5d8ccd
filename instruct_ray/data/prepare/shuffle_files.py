"""The files between the two passes of prepare: rendered rows, partitioned so that a shard is read without the others.

A block is one Arrow file with a record batch for each shard. Held-out rows have blocks of their own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from instruct_ray.data.example import Example, build_examples
from instruct_ray.data.sources.triple import HeldOutSplit

SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "digest": pa.binary(32),
        "content_digest": pa.binary(16),
        "group": pa.uint64(),
        "split_key": pa.string(),
        "copies": pa.int32(),
        "was_truncated": pa.bool_(),
        "num_tokens": pa.int32(),
        "instruction": pa.string(),
        "answer": pa.string(),
        "prompt_lengths": pa.list_(pa.int32()),
        "completion_lengths": pa.list_(pa.int32()),
        "token_ids": pa.list_(pa.int32()),
    }
)
# The columns before the tokens: the fields of `RenderedRow` except `examples`.
FIELD_COLUMNS = SCHEMA.names[: SCHEMA.names.index("prompt_lengths")]
HELD_OUT_SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "split": pa.string(),
        "digest": pa.binary(32),
        "content_digest": pa.binary(16),
        "num_tokens": pa.int32(),
        "was_truncated": pa.bool_(),
        "triple_json": pa.string(),
        "signature": pa.binary(),
    }
)


@dataclass(frozen=True)
class RenderedRow:
    """A rendered row to train on."""

    row_id: str
    digest: bytes
    """sha256 of the record."""
    content_digest: bytes
    """Equal for exact duplicates; see `Triple.content_digest`."""
    group: int
    """See `group_key`."""
    split_key: str
    """See `Triple.split_key`; empty if `data.near_duplicates` is null."""
    copies: int
    """How often an epoch trains on the row."""
    was_truncated: bool
    num_tokens: int
    instruction: str
    """Instruction to count the row by; see `report_keys`."""
    answer: str
    """Answer to count the row by; see `report_keys`."""
    examples: list[Example]


@dataclass(frozen=True)
class HeldOutRow:
    """A row to write to `test.jsonl` or `validation.jsonl`."""

    row_id: str
    split: HeldOutSplit
    digest: bytes
    """sha256 of the record."""
    content_digest: bytes
    """Equal for exact duplicates; see `Triple.content_digest`."""
    num_tokens: int
    was_truncated: bool
    triple_json: str
    signature: bytes
    """MinHash signature of the split key; empty if `data.near_duplicates` is null."""


def write_block(path: Path, shards: list[list[RenderedRow]]) -> None:
    """Write a block of rows, given by shard."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for rows in shards:
            writer.write_batch(_to_batch(rows))


def read_shard(shuffle_dir: Path, shard: int) -> Iterator[RenderedRow]:
    """Read all rows of a shard in the order of the blocks; only the bytes of the shard are read."""
    for path in sorted(shuffle_dir.glob("block-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(shard)
            tokens = batch["token_ids"]
            flat, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            rows = zip(*(batch[name].to_pylist() for name in FIELD_COLUMNS), strict=True)
            sizes = zip(batch["prompt_lengths"].to_pylist(), batch["completion_lengths"].to_pylist(), strict=True)
            for number, (values, (prompt_lengths, completion_lengths)) in enumerate(zip(rows, sizes, strict=True)):
                fields = dict(zip(FIELD_COLUMNS, values, strict=True))
                ids = flat[offsets[number] : offsets[number + 1]]
                turns = _split_into_turns(ids, prompt_lengths, completion_lengths)
                yield RenderedRow(**fields, examples=build_examples(fields["row_id"], turns))


def write_held_out_block(path: Path, rows: list[HeldOutRow]) -> None:
    """Write a block of held-out rows."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, HELD_OUT_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([vars(row) for row in rows], schema=HELD_OUT_SCHEMA))


def read_held_out_blocks(shuffle_dir: Path) -> Iterator[list[HeldOutRow]]:
    """Read the held-out rows, block by block."""
    for path in sorted(shuffle_dir.glob("held-out-*.arrow")):
        with pa.memory_map(str(path)) as source:
            yield [HeldOutRow(**values) for values in pa.ipc.open_file(source).read_all().to_pylist()]


def _to_batch(rows: list[RenderedRow]) -> pa.RecordBatch:
    columns: list[Any] = [
        pa.array([vars(row)[name] for row in rows], SCHEMA.field(name).type) for name in FIELD_COLUMNS
    ]
    columns.append(_int_lists([[len(example.prompt_ids) for example in row.examples] for row in rows]))
    columns.append(_int_lists([[len(example.completion_ids) for example in row.examples] for row in rows]))
    parts = ((example.prompt_ids, example.completion_ids) for row in rows for example in row.examples)
    num_tokens = [sum(len(e.prompt_ids) + len(e.completion_ids) for e in row.examples) for row in rows]
    columns.append(_list_array(chain.from_iterable(chain.from_iterable(parts)), num_tokens))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _int_lists(lists: list[list[int]]) -> pa.ListArray:
    return _list_array(chain.from_iterable(lists), [len(values) for values in lists])


def _list_array(values: Iterable[int], lengths: Sequence[int]) -> pa.ListArray:
    """Build a list column from flat values and lengths: several times faster than from Python lists."""
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int32)), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.fromiter(values, np.int32, offsets[-1])))


def _split_into_turns(ids: Any, prompt_lengths: list[int], completion_lengths: list[int]) -> list[tuple[Any, Any]]:
    """Split the tokens of a row into the (prompt, completion) of each turn."""
    turns, start = [], 0
    for prompt_length, completion_length in zip(prompt_lengths, completion_lengths, strict=True):
        middle, stop = start + prompt_length, start + prompt_length + completion_length
        turns.append((ids[start:middle], ids[middle:stop]))
        start = stop
    return turns
