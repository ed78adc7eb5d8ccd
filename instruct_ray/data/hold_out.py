"""Between the passes of prepare: the held-out rows of all tasks -> one file of them without duplicates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instruct_ray.data.ledger import Entry, Fate, Ledger
from instruct_ray.data.near_duplicates import NUM_PERMUTATIONS, UInt32s
from instruct_ray.data.spool import read_test_rows

# In the unfinished folder, until the run's own is written.
TEST_ROWS = "test.jsonl"


@dataclass(frozen=True)
class HoldOut:
    """What was held out."""

    num_rows: int
    num_cut: int
    fates: Counter[str]
    signatures_NP: UInt32s
    """Of the different texts; none where near duplicates are not looked for."""


def hold_out(spool: Path, files: Sequence[str], folder: Path) -> HoldOut:
    """Write `test.jsonl` and the ledger of its rows, a piece at a time."""
    seen: set[bytes] = set()
    signatures: dict[bytes, None] = {}
    fates: Counter[str] = Counter()
    num_cut = 0
    with (folder / TEST_ROWS).open("w") as lines:
        for number, rows in enumerate(read_test_rows(spool)):
            ledger = Ledger(files)
            for row in rows:
                fate: Fate = "duplicate" if row.content in seen else "test"
                ledger.add(Entry(row.row_id, row.digest, fate, num_tokens=row.num_tokens, was_cut=row.was_cut))
                if fate == "test":
                    seen.add(row.content)
                    lines.write(row.triple + "\n")
                    if row.signature:
                        signatures[row.signature] = None
            ledger.write(folder / "ledger" / f"test-{number:06d}.parquet")
            fates.update(ledger.counts)
            num_cut += ledger.num_cut
    values = np.frombuffer(b"".join(signatures), np.uint32).reshape(-1, NUM_PERMUTATIONS)
    return HoldOut(len(seen), num_cut, fates, values)
