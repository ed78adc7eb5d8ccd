"""The ledger: one line per row, and counts that add up."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from instruct_ray.data.ledger import (
    ROW_OUTCOMES,
    Ledger,
    LedgerEntry,
    check_complete,
    read_entries,
    sum_counts,
    trained_row_ids,
)
from instruct_ray.data.row_id import format_row_id, parse_row_id


def test_row_ids_round_trip() -> None:
    assert format_row_id(3, 120) == "3:120"
    assert parse_row_id("3:120") == (3, 120)


def test_entries_round_trip_through_parquet(tmp_path: Path) -> None:
    ledger = Ledger(["/a.jsonl", "s3://b/c.csv"])
    ledger.add(LedgerEntry("1:12", b"1" * 32, "trained", copies=3, num_tokens=9, was_truncated=True))
    ledger.add(LedgerEntry("0:3", b"2" * 32, "quarantined", "not_json", "is not JSON"))
    ledger.add(LedgerEntry("0:0", b"3" * 32, "test", num_tokens=4))
    ledger.write(tmp_path / "ledger" / "a.parquet")
    [batch] = read_entries(tmp_path)
    defaults = {"reason": "", "detail": "", "copies": 0, "num_tokens": 0, "was_cut": False}
    location = {"row_id": "1:12", "file": "s3://b/c.csv", "position": 12, "digest": b"1" * 32}
    first, second, third = batch.to_pylist()
    assert first == defaults | location | {"fate": "trained", "copies": 3, "num_tokens": 9, "was_cut": True}
    assert (second["file"], second["position"], second["fate"]) == ("/a.jsonl", 3, "quarantined")
    assert (second["reason"], second["detail"]) == ("not_json", "is not JSON")
    assert third["fate"] == "test"
    assert trained_row_ids(tmp_path) == {"1:12"}
    assert ledger.counts == {"trained": 1, "quarantined": 1, "test": 1}


def test_empty_ledger_can_be_written(tmp_path: Path) -> None:
    Ledger([]).write(tmp_path / "ledger" / "a.parquet")
    assert pq.read_metadata(tmp_path / "ledger" / "a.parquet").num_rows == 0


def test_num_truncated_counts_only_rows_in_use() -> None:
    ledger = Ledger(["a"])
    for outcome in ROW_OUTCOMES:
        ledger.add(LedgerEntry("0:0", b"", outcome, was_truncated=True))
    assert ledger.num_truncated == 3


def test_total_counts_have_every_outcome_and_must_add_up() -> None:
    totals = sum_counts([{"trained": 2}, {"trained": 1, "test": 1}])
    assert totals == dict.fromkeys(ROW_OUTCOMES, 0) | {"trained": 3, "test": 1}
    check_complete(totals, 4)
    with pytest.raises(RuntimeError, match="5 rows were read, but the ledger has 4"):
        check_complete(totals, 5)
