"""Checks of the input: enough usable rows, and not too many quarantined ones."""

import json
from pathlib import Path

import pytest

from instruct_ray.data.prepare.input_checks import (
    MAX_NAMED_ROWS,
    QuarantineSummary,
    check_first_rows,
    check_quarantined_rows,
)
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.data.sources.records import RowError
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, find_files, make_data_config


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (0.24, True), (0.25, False), (0.5, False)])
def test_more_quarantined_rows_than_allowed_stop_with_reasons_and_lines(
    tmp_path: Path, limit: float, stops: bool
) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(GOOD)
    path.write_text(
        f"\n{good}\n{{bad\n{good}\n[1]\n{good}\n{good}\n{{bad\n{good}\n{good}\n{{bad\n{good}\n{good}\n{good}"
    )
    data = make_data_config(path).model_copy(update={"max_bad_fraction": limit})
    content = path.read_bytes()
    quarantined = QuarantineSummary()
    quarantined.add(f"0:{content.index(b'{bad')}", RowError("not_json", "is not JSON"))
    quarantined.add(f"0:{content.index(b'[1]')}", RowError("not_an_object", "is a list"))
    quarantined.reasons.update({"not_json": 1, "wrong_type": 1})
    if not stops:
        return check_quarantined_rows(find_files(path), data, quarantined, 16)
    with pytest.raises(InputError) as error:
        check_quarantined_rows(find_files(path), data, quarantined, 16)
    assert str(error.value) == (
        f"data: 4 of 16 rows can't be used, more than data.max_bad_fraction={limit} allows (not_json 2, "
        f"not_an_object 1, wrong_type 1); {path}: row 3 is not JSON; {path}: row 5 is a list"
    )
    return None


def test_search_for_usable_rows_stops_at_two(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    data = make_data_config(path).model_copy(update={"max_bad_fraction": 0.9})
    path.write_text(json.dumps([1, GOOD, GOOD])[:-1] + ", broken")
    check_first_rows(find_files(path), split_into_chunks(find_files(path)), data)
    path.write_text(json.dumps([1, GOOD, 2]))
    with pytest.raises(InputError, match=r"1 of 3 rows of .*a.json can be used; two are needed"):
        check_first_rows(find_files(path), split_into_chunks(find_files(path)), data)


def test_merged_summary_counts_all_rows_and_keeps_the_first() -> None:
    first, second = QuarantineSummary(), QuarantineSummary()
    for number in range(MAX_NAMED_ROWS + 1):
        second.add(f"1:{number}", RowError("not_json", "is not JSON"))
    first.add("0:7", RowError("missing_field", "has no output"))
    first.merge(second)
    assert first.reasons == {"missing_field": 1, "not_json": MAX_NAMED_ROWS + 1}
    assert [row_id for row_id, _ in first.first_rows] == ["0:7", *(f"1:{n}" for n in range(MAX_NAMED_ROWS - 1))]
