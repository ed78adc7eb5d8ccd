"""Between the passes of prepare: the held-out rows of all tasks -> one file for each split, without duplicates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from instruct_ray.data.ledger import Ledger, LedgerEntry, RowOutcome
from instruct_ray.data.prepare.decisions import DuplicateFilter
from instruct_ray.data.prepare.near_duplicates import NUM_PERMUTATIONS, UInt32s
from instruct_ray.data.prepare.shuffle_files import read_held_out_blocks
from instruct_ray.data.sources.triple import HeldOutSplit

# Names in the unfinished folder; the files are moved to the run's own paths at the end.
TEST_ROWS = "test.jsonl"
VALIDATION_ROWS = "validation.jsonl"


@dataclass(frozen=True)
class HeldOutSummary:
    """Counts and signatures of the held-out rows."""

    outcomes: Counter[str]
    num_truncated: int
    signatures_NP: UInt32s
    """Distinct MinHash signatures; empty if `data.near_duplicates` is null."""


def write_held_out_rows(shuffle_dir: Path, files: Sequence[str], folder: Path) -> HeldOutSummary:
    """Write `test.jsonl`, `validation.jsonl` and the ledger of their rows, one block at a time."""
    duplicates = DuplicateFilter()
    signatures: dict[bytes, None] = {}
    outcomes: Counter[str] = Counter()
    num_truncated = 0
    with (folder / TEST_ROWS).open("w") as test, (folder / VALIDATION_ROWS).open("w") as validation:
        split_files: dict[HeldOutSplit, TextIO] = {"test": test, "validation": validation}
        for number, rows in enumerate(read_held_out_blocks(shuffle_dir)):
            ledger = Ledger(files)
            for row in rows:
                is_new = duplicates.add(row.content_digest)
                outcome: RowOutcome = row.split if is_new else "duplicate"
                ledger.add(
                    LedgerEntry(
                        row.row_id, row.digest, outcome, num_tokens=row.num_tokens, was_truncated=row.was_truncated
                    )
                )
                if is_new:
                    split_files[row.split].write(row.triple_json + "\n")
                    if row.signature:
                        signatures[row.signature] = None
            ledger.write(folder / "ledger" / f"held-out-{number:06d}.parquet")
            outcomes.update(ledger.counts)
            num_truncated += ledger.num_truncated
    signatures_NP = np.frombuffer(b"".join(signatures), np.uint32).reshape(-1, NUM_PERMUTATIONS)
    return HeldOutSummary(outcomes, num_truncated, signatures_NP)
