"""Every input row's fate: one line a row in Parquet, and counts that add up to the rows read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instruct_ray.data.row_id import parse_row_id
from instruct_ray.errors import InputError

RowOutcome = Literal[
    "trained",  # in the packs
    "test",  # held out for evidence
    "validation",  # held out to compare checkpoints
    "duplicate",  # equal to an earlier row, which stands for it
    "near_duplicate",  # resembles a held-out row too much to be trained on
    "too_long",  # longer than data.max_tokens or a pack
    "left_out",  # by a weight below 1
    "quarantined",  # can't be used; the reason says why
]
ROW_OUTCOMES: tuple[RowOutcome, ...] = get_args(RowOutcome)
SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "file": pa.dictionary(pa.int32(), pa.string()),
        "position": pa.int64(),
        "digest": pa.binary(32),
        "fate": pa.dictionary(pa.int8(), pa.string()),
        "reason": pa.string(),
        "detail": pa.string(),
        "copies": pa.int32(),
        "num_tokens": pa.int32(),
        "was_truncated": pa.bool_(),
    }
)


@dataclass(frozen=True)
class LedgerEntry:
    """One row of the ledger."""

    row_id: str
    """Number of the file and position in it, `FILE:POSITION`."""
    digest: bytes
    """sha256 of the row."""
    fate: RowOutcome
    reason: str = ""
    """A short code to count by, of quarantined rows."""
    detail: str = ""
    copies: int = 0
    """How often an epoch trains it."""
    num_tokens: int = 0
    was_truncated: bool = False
    """Whether its input was cut to fit."""


class Ledger:
    """The entries of one task, written as one file."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._entries: list[LedgerEntry] = []

    def add(self, entry: LedgerEntry) -> None:
        """Note a row's fate."""
        self._entries.append(entry)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by fate."""
        return dict(Counter(entry.fate for entry in self._entries))

    @property
    def num_cut(self) -> int:
        """Rows trained on or held out with an input that was cut."""
        return sum(entry.was_truncated and entry.fate in ("trained", "test", "validation") for entry in self._entries)

    def write(self, path: Path) -> None:
        """Write the entries as Parquet."""
        places = [parse_row_id(entry.row_id) for entry in self._entries]
        columns: dict[str, Any] = {
            name: [getattr(entry, name) for entry in self._entries]
            for name in ("row_id", "digest", "reason", "detail", "copies", "num_tokens", "was_truncated")
        }
        columns["position"] = [position for _, position in places]
        columns["file"] = pa.DictionaryArray.from_arrays(
            pa.array([number for number, _ in places], pa.int32()), pa.array(self._files)
        )
        columns["fate"] = pa.DictionaryArray.from_arrays(
            pa.array([ROW_OUTCOMES.index(entry.fate) for entry in self._entries], pa.int8()), pa.array(ROW_OUTCOMES)
        )
        path.parent.mkdir(exist_ok=True)
        table = pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
        pq.write_table(table, path, compression="zstd")


def sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counts of several tasks added; every fate is named."""
    totals: Counter[str] = Counter()
    for one in counts:
        totals.update(one)
    return {fate: totals[fate] for fate in ROW_OUTCOMES}


def check_complete(counts: dict[str, int], num_read: int) -> None:
    """Hold the counts against the rows read.

    Raises:
        RuntimeError: a row has no fate, or two.
    """
    if sum(counts.values()) != num_read:
        raise RuntimeError(f"{num_read} rows were read, but {sum(counts.values())} are accounted for: {counts}")


def check_bad_fraction(reasons: Counter[str], num_read: int, limit: float, examples: Sequence[str]) -> None:
    """Stop when too many rows can't be used.

    Raises:
        InputError: names the reasons by number, and the first rows.
    """
    num_bad = sum(reasons.values())
    if num_bad > limit * num_read:
        by_reason = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))
        raise InputError(
            f"data: {num_bad} of {num_read} rows can't be used, more than data.max_bad_fraction={limit} allows "
            f"({by_reason}); {'; '.join(examples)}"
        )


def read_entries(packs: Path, *columns: str) -> Iterator[pa.RecordBatch]:
    """The ledger of a prepared folder, in batches."""
    for file in sorted((packs / "ledger").glob("*.parquet")):
        yield from pq.ParquetFile(file).iter_batches(columns=list(columns) or None)


def trained_row_ids(packs: Path) -> set[str]:
    """Ids of the rows in the packs."""
    ids: set[str] = set()
    for batch in read_entries(packs, "row_id", "fate"):
        ids.update(batch.filter(pc.equal(batch["fate"], "trained"))["row_id"].to_pylist())
    return ids
