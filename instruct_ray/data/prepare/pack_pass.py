"""Second pass of prepare: a shard of rendered rows -> its packs in one Parquet file, and each row's fate."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instruct_ray.data.example import Example
from instruct_ray.data.ledger import Ledger, LedgerEntry, RowOutcome
from instruct_ray.data.packs.dataset import shard_file, write_packs
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.data.prepare.near_duplicates import NearDuplicateIndex
from instruct_ray.data.prepare.shuffle_files import RenderedRow, read_shard
from instruct_ray.data.report.statistics import Statistics


@dataclass(frozen=True)
class PackPassSpec:
    """What every task of the pass needs to know."""

    folder: Path
    spool: Path
    files: tuple[str, ...]
    pack_tokens: int
    seed: int


@dataclass(frozen=True)
class PackPassResult:
    """What a task has done."""

    shard: int
    fates: dict[str, int]
    num_cut: int
    num_examples: int
    num_packs: int
    num_tokens: int
    num_computed_tokens: int
    num_trained_tokens: int
    statistics: Statistics


def pack_shard(shard: int, job: PackPassSpec, held_out: NearDuplicateIndex | None) -> PackPassResult:
    """Drop duplicates, order the rows by group, pack them, and write packs and ledger."""
    ledger = Ledger(job.files)
    rows = list(_unique_rows(list(read_shard(job.spool, shard)), held_out, ledger))
    examples = order_examples(rows, job.seed)
    packs = sorted(
        pack_examples(examples, job.pack_tokens), key=lambda made: _hash(job.seed, "/".join(made["row_ids"]))
    )
    if packs:
        write_packs(job.folder / shard_file(shard), packs, job.pack_tokens)
    ledger.write(job.folder / "ledger" / f"shard-{shard:06d}.parquet")
    return PackPassResult(
        shard=shard,
        fates=ledger.counts,
        num_cut=ledger.num_cut,
        num_examples=len(examples),
        num_packs=len(packs),
        num_tokens=sum(made["num_tokens"] for made in packs),
        num_computed_tokens=sum(len(made["input_ids"]) for made in packs),
        num_trained_tokens=sum(made["num_trained"] for made in packs),
        statistics=_count(rows),
    )


def _count(rows: list[RenderedRow]) -> Statistics:
    statistics = Statistics()
    for row in rows:
        statistics.add(row.row_id, row.instruction, row.answer, row.examples)
    statistics.trim()
    return statistics


def _unique_rows(
    rows: Sequence[RenderedRow], held_out: NearDuplicateIndex | None, ledger: Ledger
) -> Iterator[RenderedRow]:
    """Rows that are trained on; the ledger gets the fate of all."""
    seen: set[bytes] = set()
    find_similar = held_out.find_similar(dict.fromkeys(row.split_key for row in rows)) if held_out else set()
    for row in rows:
        fate: RowOutcome = "trained"
        if row.content in seen:
            fate = "duplicate"
        elif row.split_key in find_similar:
            fate = "near_duplicate"
        seen.add(row.content)
        copies = row.copies if fate == "trained" else 0
        ledger.add(
            LedgerEntry(
                row.row_id, row.digest, fate, copies=copies, num_tokens=row.num_tokens, was_truncated=row.was_truncated
            )
        )
        if fate == "trained":
            yield row


def order_examples(rows: list[RenderedRow], seed: int) -> list[Example]:
    """Rows of a group, which share their prompt up to the input, lie together, shuffled among themselves; a row's
    copies are shuffled like rows, and the turns of a chat stay together."""
    copies = [(row, f"{row.row_id}#{copy + 1}" if copy else row.row_id) for row in rows for copy in range(row.copies)]
    copies.sort(key=lambda item: (_hash(seed, str(item[0].group)), _hash(seed, item[1])))
    examples: list[Example] = []
    for row, name in copies:
        suffix = name.removeprefix(row.row_id)
        examples += (replace(e, row_id=e.row_id + suffix) for e in row.examples) if suffix else row.examples
    return examples


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
