"""Second pass of prepare: a shard of rendered rows -> its packs in one Parquet file, and the outcome of each row."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instruct_ray.data.example import Example
from instruct_ray.data.ledger import Ledger, LedgerEntry, RowOutcome
from instruct_ray.data.packs.dataset import shard_file, write_packs
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.data.prepare.decisions import DuplicateFilter
from instruct_ray.data.prepare.near_duplicates import NearDuplicateIndex
from instruct_ray.data.prepare.shuffle_files import RenderedRow, read_shard
from instruct_ray.data.report.statistics import Statistics


@dataclass(frozen=True)
class PackPassSpec:
    """The inputs that all tasks of the pass share."""

    folder: Path
    """Where packs and ledger are written."""
    shuffle_dir: Path
    files: tuple[str, ...]
    """URIs of the source files."""
    pack_tokens: int
    seed: int
    candidate_ids: frozenset[str]
    """Rows that few-shot examples may be chosen from, if they are trained on."""


@dataclass(frozen=True)
class PackPassResult:
    """Counts of one shard."""

    shard: int
    outcomes: dict[str, int]
    num_truncated: int
    num_examples: int
    num_packs: int
    num_tokens: int
    num_computed_tokens: int
    num_target_tokens: int
    statistics: Statistics
    trained_candidates: list[str]
    """Those of the candidates that are trained on."""


def pack_shard(shard: int, spec: PackPassSpec, held_out: NearDuplicateIndex | None) -> PackPassResult:
    """Drop duplicates, order the rows by group, pack them, and write packs and ledger."""
    ledger = Ledger(spec.files)
    rows = _drop_duplicates(list(read_shard(spec.shuffle_dir, shard)), held_out, ledger)
    examples = order_examples(rows, spec.seed)
    packs = sorted(
        pack_examples(examples, spec.pack_tokens), key=lambda pack: _hash(spec.seed, "/".join(pack["row_ids"]))
    )
    if packs:
        write_packs(spec.folder / shard_file(shard), packs, spec.pack_tokens)
    ledger.write(spec.folder / "ledger" / f"shard-{shard:06d}.parquet")
    return PackPassResult(
        shard=shard,
        outcomes=ledger.counts,
        num_truncated=ledger.num_truncated,
        num_examples=len(examples),
        num_packs=len(packs),
        num_tokens=sum(pack["num_tokens"] for pack in packs),
        num_computed_tokens=sum(len(pack["input_ids"]) for pack in packs),
        num_target_tokens=sum(pack["num_trained"] for pack in packs),
        statistics=_count_rows(rows),
        trained_candidates=[row.row_id for row in rows if row.row_id in spec.candidate_ids],
    )


def _count_rows(rows: Sequence[RenderedRow]) -> Statistics:
    statistics = Statistics()
    for row in rows:
        statistics.add(row.row_id, row.instruction, row.answer, row.examples)
    statistics.trim()
    return statistics


def _drop_duplicates(
    rows: Sequence[RenderedRow], held_out: NearDuplicateIndex | None, ledger: Ledger
) -> list[RenderedRow]:
    """Select the rows to train on; all rows are added to the ledger."""
    duplicates = DuplicateFilter()
    leaking_keys = held_out.find_similar(dict.fromkeys(row.split_key for row in rows)) if held_out else set()
    kept: list[RenderedRow] = []
    for row in rows:
        outcome: RowOutcome = "trained"
        if not duplicates.add(row.content_digest):
            outcome = "duplicate"
        elif row.split_key in leaking_keys:
            outcome = "near_duplicate"
        else:
            kept.append(row)
        ledger.add(
            LedgerEntry(
                row.row_id,
                row.digest,
                outcome,
                copies=row.copies if outcome == "trained" else 0,
                num_tokens=row.num_tokens,
                was_truncated=row.was_truncated,
            )
        )
    return kept


def order_examples(rows: Sequence[RenderedRow], seed: int) -> list[Example]:
    """Order the examples of rows for packing.

    Rows of a group, which share their prompt up to the input, are adjacent, and shuffled within the group. Copies of a
    row are shuffled like rows. The turns of a chat stay together.
    """
    copies = [(row, f"{row.row_id}#{copy + 1}" if copy else row.row_id) for row in rows for copy in range(row.copies)]
    copies.sort(key=lambda item: (_hash(seed, str(item[0].group)), _hash(seed, item[1])))
    examples: list[Example] = []
    for row, copy_id in copies:
        suffix = copy_id.removeprefix(row.row_id)
        examples += (replace(e, row_id=e.row_id + suffix) for e in row.examples) if suffix else row.examples
    return examples


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
