"""The ledger: the outcome of every input row, one line per row in Parquet."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instruct_ray.data.row_id import parse_row_id

RowOutcome = Literal[
    "trained",  # in the packs
    "test",  # held out for evidence
    "validation",  # held out to compare checkpoints
    "duplicate",  # equal to an earlier row, which is kept
    "near_duplicate",  # too similar to a held-out row to be trained on
    "too_long",  # longer than data.max_tokens or a pack
    "left_out",  # skipped by a weight below 1, or by data.train_fraction
    "quarantined",  # can't be used; `reason` and `detail` explain why
]
ROW_OUTCOMES: tuple[RowOutcome, ...] = get_args(RowOutcome)
USED_OUTCOMES: tuple[RowOutcome, ...] = ("trained", "test", "validation")
# Column names are those of earlier versions: `fate` is the outcome, `was_cut` is was_truncated.
OUTCOME_COLUMN, TRUNCATED_COLUMN = "fate", "was_cut"
SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "file": pa.dictionary(pa.int32(), pa.string()),
        "position": pa.int64(),
        "digest": pa.binary(32),
        OUTCOME_COLUMN: pa.dictionary(pa.int8(), pa.string()),
        "reason": pa.string(),
        "detail": pa.string(),
        "copies": pa.int32(),
        "num_tokens": pa.int32(),
        TRUNCATED_COLUMN: pa.bool_(),
    }
)


@dataclass(frozen=True)
class LedgerEntry:
    """One row of the ledger."""

    row_id: str
    """See `format_row_id`."""
    digest: bytes
    """sha256 of the row."""
    outcome: RowOutcome
    reason: str = ""
    """Of a quarantined row: a short code to count by."""
    detail: str = ""
    """Of a quarantined row: a description of the problem."""
    copies: int = 0
    """How often an epoch trains on the row."""
    num_tokens: int = 0
    was_truncated: bool = False
    """Whether the row's input was truncated to fit."""


class Ledger:
    """The entries of one task, written as one file."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._entries: list[LedgerEntry] = []

    def add(self, entry: LedgerEntry) -> None:
        """Add the entry of a row."""
        self._entries.append(entry)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by outcome; outcomes without rows are missing."""
        return dict(Counter(entry.outcome for entry in self._entries))

    @property
    def num_truncated(self) -> int:
        """Rows that are trained on or held out with a truncated input."""
        return sum(entry.was_truncated and entry.outcome in USED_OUTCOMES for entry in self._entries)

    def write(self, path: Path) -> None:
        """Write the entries as Parquet."""
        locations = [parse_row_id(entry.row_id) for entry in self._entries]
        file_numbers = pa.array([file_number for file_number, _ in locations], pa.int32())
        outcomes = pa.array([ROW_OUTCOMES.index(entry.outcome) for entry in self._entries], pa.int8())
        columns: dict[str, Any] = {
            name: [getattr(entry, name) for entry in self._entries]
            for name in ("row_id", "digest", "reason", "detail", "copies", "num_tokens")
        } | {
            "file": pa.DictionaryArray.from_arrays(file_numbers, pa.array(self._files)),
            "position": [position for _, position in locations],
            OUTCOME_COLUMN: pa.DictionaryArray.from_arrays(outcomes, pa.array(ROW_OUTCOMES)),
            TRUNCATED_COLUMN: [entry.was_truncated for entry in self._entries],
        }
        path.parent.mkdir(exist_ok=True)
        table = pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
        pq.write_table(table, path, compression="zstd")


def sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the outcome counts of several tasks; the result has every outcome as a key."""
    totals: Counter[str] = Counter()
    for task_counts in counts:
        totals.update(task_counts)
    return {outcome: totals[outcome] for outcome in ROW_OUTCOMES}


def check_complete(counts: Mapping[str, int], num_read: int) -> None:
    """Check that the outcomes add up to the number of rows read.

    Raises:
        RuntimeError: a row has no outcome, or more than one.
    """
    num_counted = sum(counts.values())
    if num_counted != num_read:
        raise RuntimeError(f"{num_read} rows were read, but the ledger has {num_counted}: {counts}")


def read_entries(packs_dir: Path, *columns: str) -> Iterator[pa.RecordBatch]:
    """Read the ledger of a prepared folder in batches, with all columns or the given ones."""
    for path in sorted((packs_dir / "ledger").glob("*.parquet")):
        yield from pq.ParquetFile(path).iter_batches(columns=list(columns) or None)


def trained_row_ids(packs_dir: Path) -> set[str]:
    """Read the ids of the rows in the packs."""
    row_ids: set[str] = set()
    for batch in read_entries(packs_dir, "row_id", OUTCOME_COLUMN):
        row_ids.update(batch.filter(pc.equal(batch[OUTCOME_COLUMN], "trained"))["row_id"].to_pylist())
    return row_ids
