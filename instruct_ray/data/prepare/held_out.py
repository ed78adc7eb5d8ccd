"""Between the passes of prepare: the held-out rows of all tasks -> a file for each use, without duplicates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from instruct_ray.data.ledger import Ledger, LedgerEntry, RowOutcome
from instruct_ray.data.prepare.near_duplicates import NUM_PERMUTATIONS, UInt32s
from instruct_ray.data.prepare.shuffle_files import read_held_out_rows
from instruct_ray.data.sources.triple import HeldOutSplit

# In the unfinished folder, until the run's own are written.
TEST_ROWS = "test.jsonl"
VALIDATION_ROWS = "validation.jsonl"


@dataclass(frozen=True)
class HeldOutSummary:
    """What was held out."""

    num_cut: int
    fates: Counter[str]
    signatures_NP: UInt32s
    """Of the different texts; none where near duplicates are not looked for."""


def write_held_out_rows(spool: Path, files: Sequence[str], folder: Path) -> HeldOutSummary:
    """Write `test.jsonl`, `validation.jsonl` and the ledger of their rows, a piece at a time."""
    seen: set[bytes] = set()
    signatures: dict[bytes, None] = {}
    fates: Counter[str] = Counter()
    num_cut = 0
    with (folder / TEST_ROWS).open("w") as test, (folder / VALIDATION_ROWS).open("w") as validation:
        files_of: dict[HeldOutSplit, TextIO] = {"test": test, "validation": validation}
        for number, rows in enumerate(read_held_out_rows(spool)):
            ledger = Ledger(files)
            for row in rows:
                fate: RowOutcome = "duplicate" if row.content in seen else row.side
                ledger.add(
                    LedgerEntry(
                        row.row_id, row.digest, fate, num_tokens=row.num_tokens, was_truncated=row.was_truncated
                    )
                )
                if fate == "duplicate":
                    continue
                seen.add(row.content)
                files_of[row.side].write(row.triple + "\n")
                if row.signature:
                    signatures[row.signature] = None
            ledger.write(folder / "ledger" / f"held-out-{number:06d}.parquet")
            fates.update(ledger.counts)
            num_cut += ledger.num_cut
    values = np.frombuffer(b"".join(signatures), np.uint32).reshape(-1, NUM_PERMUTATIONS)
    return HeldOutSummary(num_cut, fates, values)
