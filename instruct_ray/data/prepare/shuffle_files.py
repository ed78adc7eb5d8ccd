"""The files between the two passes of prepare: rendered rows, dealt to shards so that each is read without the rest.

A piece is one Arrow file with a record batch for each shard. Held-out rows have files of their own.
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
        "content": pa.binary(16),
        "group": pa.uint64(),
        "split_key": pa.string(),
        "copies": pa.int32(),
        "was_truncated": pa.bool_(),
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
HELD_OUT_SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "side": pa.string(),
        "digest": pa.binary(32),
        "content": pa.binary(16),
        "num_tokens": pa.int32(),
        "was_truncated": pa.bool_(),
        "triple": pa.string(),
        "signature": pa.binary(),
    }
)


@dataclass(frozen=True)
class RenderedRow:
    """A rendered row on its way to a pack."""

    row_id: str
    digest: bytes
    content: bytes
    """Equal for exact duplicates."""
    group: int
    split_key: str
    copies: int
    was_truncated: bool
    num_tokens: int
    instruction: str
    """See `statistics.countable`."""
    answer: str
    examples: list[Example]


@dataclass(frozen=True)
class HeldOutRow:
    """A held-out row on its way to `test.jsonl` or `validation.jsonl`."""

    row_id: str
    side: HeldOutSplit
    digest: bytes
    content: bytes
    num_tokens: int
    was_truncated: bool
    triple: str
    """A line of JSON."""
    signature: bytes
    """See `near_duplicates`; empty where they are not looked for."""


def write_block(path: Path, shards: list[list[RenderedRow]]) -> None:
    """Write rows by shard."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for rows in shards:
            writer.write_batch(_to_batch(rows))


def read_shard(folder: Path, shard: int) -> Iterator[RenderedRow]:
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
                yield RenderedRow(
                    **row, examples=build_examples(row["row_id"], _turns(ids, num_prompts, num_completions))
                )


def write_held_out_rows(path: Path, rows: list[HeldOutRow]) -> None:
    """Write held-out rows."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, HELD_OUT_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([vars(row) for row in rows], schema=HELD_OUT_SCHEMA))


def read_held_out_rows(folder: Path) -> Iterator[list[HeldOutRow]]:
    """All held-out rows, piece by piece."""
    for path in sorted(folder.glob("held-out-*.arrow")):
        with pa.memory_map(str(path)) as source:
            yield [HeldOutRow(**values) for values in pa.ipc.open_file(source).read_all().to_pylist()]


def _to_batch(rows: list[RenderedRow]) -> pa.RecordBatch:
    columns: list[Any] = [
        pa.array([vars(row)[name] for row in rows], SCHEMA.field(name).type) for name in PLAIN_COLUMNS
    ]
    columns.append(_lists([[len(example.prompt_ids) for example in row.examples] for row in rows]))
    columns.append(_lists([[len(example.completion_ids) for example in row.examples] for row in rows]))
    parts = ((example.prompt_ids, example.completion_ids) for row in rows for example in row.examples)
    num_tokens = [sum(len(e.prompt_ids) + len(e.completion_ids) for e in row.examples) for row in rows]
    columns.append(_list_array(chain.from_iterable(chain.from_iterable(parts)), num_tokens))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _lists(lists: list[list[int]]) -> pa.ListArray:
    return _list_array(chain.from_iterable(lists), [len(one) for one in lists])


def _list_array(values: Iterable[int], lengths: Sequence[int]) -> pa.ListArray:
    """Lists given by all their values and their lengths: several times faster than from Python lists."""
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int32)), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.fromiter(values, np.int32, offsets[-1])))


def _turns(ids: Any, num_prompts: list[int], num_completions: list[int]) -> list[tuple[Any, Any]]:
    """A row's tokens, cut into (prompt, completion) of each of its turns."""
    turns, start = [], 0
    for num_prompt, num_completion in zip(num_prompts, num_completions, strict=True):
        middle, stop = start + num_prompt, start + num_prompt + num_completion
        turns.append((ids[start:middle], ids[middle:stop]))
        start = stop
    return turns
