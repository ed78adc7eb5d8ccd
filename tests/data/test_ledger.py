"""The ledger: one line a row, and counts that add up."""

import json
from collections import Counter
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
from instruct_ray.data.prepare.input_checks import check_first_rows, check_quarantined_rows
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, find_files, make_data_config


def test_entries_come_back_as_written(tmp_path: Path) -> None:
    entries = Ledger(["/a.jsonl", "s3://b/c.csv"])
    entries.add(LedgerEntry("1:12", b"1" * 32, "trained", copies=3, num_tokens=9, was_truncated=True))
    entries.add(LedgerEntry("0:3", b"2" * 32, "quarantined", "not_json", "is not JSON"))
    entries.add(LedgerEntry("0:0", b"3" * 32, "test", num_tokens=4))
    entries.write(tmp_path / "ledger" / "a.parquet")
    [batch] = read_entries(tmp_path)
    nothing = {"reason": "", "detail": "", "copies": 0, "num_tokens": 0, "was_truncated": False}
    first, second, third = batch.to_pylist()
    place = {"row_id": "1:12", "file": "s3://b/c.csv", "position": 12, "digest": b"1" * 32, "fate": "trained"}
    assert first == nothing | place | {"copies": 3, "num_tokens": 9, "was_truncated": True}
    assert (second["file"], second["position"], second["fate"]) == ("/a.jsonl", 3, "quarantined")
    assert (second["reason"], second["detail"]) == ("not_json", "is not JSON")
    assert third["fate"] == "test"
    assert trained_row_ids(tmp_path) == {"1:12"}
    assert entries.counts == {"trained": 1, "quarantined": 1, "test": 1}


def test_an_empty_ledger_is_written(tmp_path: Path) -> None:
    Ledger([]).write(tmp_path / "ledger" / "a.parquet")
    assert pq.read_metadata(tmp_path / "ledger" / "a.parquet").num_rows == 0


def test_only_rows_in_use_count_as_cut() -> None:
    entries = Ledger(["a"])
    for fate in ROW_OUTCOMES:
        entries.add(LedgerEntry("0:0", b"", fate, was_truncated=True))
    assert entries.num_cut == 3


def test_totals_name_every_fate_and_have_to_add_up() -> None:
    totals = sum_counts([{"trained": 2}, {"trained": 1, "test": 1}])
    assert totals == dict.fromkeys(ROW_OUTCOMES, 0) | {"trained": 3, "test": 1}
    check_complete(totals, 4)
    with pytest.raises(RuntimeError, match="5 rows were read, but 4 are accounted for"):
        check_complete(totals, 5)


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (0.24, True), (0.25, False), (0.5, False)])
def test_more_bad_rows_than_allowed_stop_with_reasons_and_lines(tmp_path: Path, limit: float, stops: bool) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(GOOD)
    path.write_text(
        f"\n{good}\n{{bad\n{good}\n[1]\n{good}\n{good}\n{{bad\n{good}\n{good}\n{{bad\n{good}\n{good}\n{good}"
    )
    data = make_data_config(path).model_copy(update={"max_bad_fraction": limit})
    [file] = find_files(path)
    content = path.read_bytes()
    bad = [(0, content.index(b"{bad"), "is not JSON"), (0, content.index(b"[1]"), "is a list")]
    reasons = Counter({"not_an_object": 1, "not_json": 2, "wrong_type": 1})
    if not stops:
        return check_quarantined_rows([file], data, reasons, 16, bad)
    with pytest.raises(InputError) as error:
        check_quarantined_rows([file], data, reasons, 16, bad)
    assert str(error.value) == (
        f"data: 4 of 16 rows can't be used, more than data.max_bad_fraction={limit} allows (not_json 2, "
        f"not_an_object 1, wrong_type 1); {path}: row 3 is not JSON; {path}: row 5 is a list"
    )
    return None


def test_the_look_ahead_stops_at_two_usable_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    data = make_data_config(path).model_copy(update={"max_bad_fraction": 0.9})
    path.write_text(json.dumps([1, GOOD, GOOD])[:-1] + ", broken")
    check_first_rows(find_files(path), split_into_chunks(find_files(path)), data)
    path.write_text(json.dumps([1, GOOD, 2]))
    with pytest.raises(InputError, match=r"1 of 3 rows of .*a.json can be used; two are needed"):
        check_first_rows(find_files(path), split_into_chunks(find_files(path)), data)
