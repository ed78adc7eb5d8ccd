"""The split: a frequent input does not put its rows on one side, and ordinary data is split by its inputs."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_ray.config.data import DataConfig
from instruct_ray.data.prepare import split_rule
from instruct_ray.data.prepare.split_checks import check_held_out, check_split
from instruct_ray.data.prepare.split_rule import KeyCounts, SplitRule, find_split_rule
from instruct_ray.data.sources import files as sources
from instruct_ray.data.sources.triple import Triple, assign_split
from instruct_ray.errors import InputError
from tests.data.sources.read_all import find_files, make_data_config

Row = dict[str, str]


@pytest.fixture
def find_rule(tmp_path: Path) -> Callable[..., SplitRule]:
    """Finds the rule for rows that are spread over some files."""

    def find(rows: list[Row], num_files: int = 1, test_fraction: float = 0.1) -> SplitRule:
        for number in range(num_files):
            part = rows[number::num_files]
            (tmp_path / f"{number:03d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        data = make_data_config(tmp_path).model_copy(update={"test_fraction": test_fraction})
        return find_split_rule(find_files(tmp_path), data)

    return find


def make_rows(num_rows: int, shared_input: str, share: float) -> list[Row]:
    """Rows with different instructions, of which a share has one input."""
    num_shared = round(num_rows * share)
    return [
        {"instruction": f"Ask {n}", "input": shared_input if n < num_shared else f"report {n}", "output": "x"}
        for n in range(num_rows)
    ]


def count_test_rows(rows: list[Row], rule: SplitRule, fraction: float = 0.1) -> int:
    keys = [rule.key(Triple("", row["instruction"], row["input"], row["output"])) for row in rows]
    return sum(assign_split(key, fraction, 0.0) == "test" for key in keys)


@pytest.mark.parametrize("placeholder", ["None", "N/A", "-", "null", "nan", "<noinput>", "0", "kein Eingabetext", "–"])
@pytest.mark.parametrize("share", [0.06, 0.5, 1.0])
def test_rows_with_a_frequent_input_are_split_by_their_instruction(
    find_rule: Callable[..., SplitRule], placeholder: str, share: float
) -> None:
    rows = make_rows(400, placeholder, share)
    rule = find_rule(rows)
    assert 15 < count_test_rows(rows, rule) < 70
    assert rule.key(Triple("", "Ask", f" {placeholder.upper()} ", "")) == f"ask {placeholder}".casefold()
    assert rule.key(Triple("", "Ask", "report 1", "")) == "report 1"


@pytest.mark.parametrize(("num_rows", "share"), [(400, 0.05), (400, 0.01), (100, 0.1), (20, 0.5)])
def test_ordinary_data_is_split_by_its_inputs(find_rule: Callable[..., SplitRule], num_rows: int, share: float) -> None:
    assert find_rule(make_rows(num_rows, "the same report", share)) == SplitRule()
    assert (
        find_rule([{"instruction": f"Ask {n % 3}", "input": f"report {n // 9}", "output": "x"} for n in range(300)])
        == SplitRule()
    )


def test_a_small_held_out_fraction_allows_smaller_groups_only(find_rule: Callable[..., SplitRule]) -> None:
    rows = make_rows(1000, "None", 0.03)
    assert find_rule(rows, test_fraction=0.1) == SplitRule()
    assert len(find_rule(rows, test_fraction=0.02).frequent_keys) == 1


def test_frequent_inputs_are_found_in_a_sample_of_large_data(
    find_rule: Callable[..., SplitRule], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(4000, "None", 0.3)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2000)
    for name, value in (("SAMPLED_FILES", 4), ("SAMPLED_CHUNKS", 8), ("SAMPLED_ROWS", 160), ("SAMPLED_BYTES", 20_000)):
        monkeypatch.setattr(split_rule, name, value)
    read: list[str] = []
    add = KeyCounts.add
    monkeypatch.setattr(KeyCounts, "add", lambda keys, key: (read.append(key), add(keys, key)))
    assert find_rule(rows, num_files=9).key(Triple("", "Ask", "None", "")) == "ask none"
    assert 50 < len(read) <= 160


def test_a_file_without_rows_has_no_frequent_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), tmp_path / "a.parquet")
    data = make_data_config(tmp_path / "a.parquet")
    assert find_split_rule(find_files(tmp_path / "a.parquet"), data) == SplitRule()


def test_chats_and_rows_without_input_are_split_by_all_their_questions() -> None:
    rows = [Triple("", "Ask", "", "x"), Triple("", "b", "", "x", history=(("a", "y"),)), Triple("", "c", "d", "x")]
    frequent = KeyCounts()
    for row in rows:
        frequent.add(row.split_key)
    rule = SplitRule(frozenset(frequent.counts))
    assert [rule.key(row) for row in rows] == ["ask", "a b", "c d"]


def test_counts_are_of_bounded_size_and_name_the_most_frequent_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_rule, "MAX_COUNTED_KEYS", 50)
    monkeypatch.setattr(split_rule, "MAX_KEPT_KEYS", 10)
    keys, others = KeyCounts(), KeyCounts()
    assert keys.describe_most_frequent() == ""
    for number in range(500):
        keys.add(f"key {number}")
        keys.add("x" * 100)
        others.add("x" * 100)
    assert len(keys.counts) == len(keys.texts) <= 51
    keys.merge(others)
    assert keys.num_rows == 1500
    assert keys.describe_most_frequent().startswith(f"1000 rows have the same input or prompt '{'x' * 60}'")


@pytest.mark.parametrize(
    ("fraction", "held_out", "num_rows", "is_refused"),
    [
        (0.1, 165, 200, True),
        (0.1, 52, 200, True),
        (0.1, 40, 200, False),
        (0.1, 4, 10, False),
        (0.5, 20, 400, True),
        (0.25, 30, 64, False),
        (0.01, 1, 10_000, True),
        (0.01, 70, 10_000, False),
        (0.05, 1, 60, False),
    ],
)
def test_share_far_from_the_fraction_is_refused_with_its_key(
    fraction: float, held_out: int, num_rows: int, is_refused: bool
) -> None:
    keys = KeyCounts()
    for _ in range(7):
        keys.add("none")
    outcomes = {"trained": num_rows - held_out, "test": held_out, "validation": 0, "near_duplicate": 0, "left_out": 0}
    data = DataConfig.model_validate({"sources": ["x"], "test_fraction": fraction})
    if not is_refused:
        return check_split(data, outcomes, keys)
    with pytest.raises(InputError) as error:
        check_split(data, outcomes, keys)
    assert f"data.test_fraction={fraction}: {held_out} of {num_rows} rows would be held out" in str(error.value)
    assert "7 rows have the same input or prompt 'none', which keeps them in one split" in str(error.value)
    return None


def test_a_side_without_rows_is_refused_with_its_key() -> None:
    keys = KeyCounts()
    for _ in range(3):
        keys.add("write a poem")
    data = make_data_config("x")
    outcomes = {"trained": 0, "test": 3, "validation": 0, "near_duplicate": 0, "left_out": 0}
    with pytest.raises(InputError, match="no row is left to train on: 3 rows have the same input or prompt 'write a"):
        check_split(data, outcomes, keys)
    with pytest.raises(InputError, match=r"no row is held out of 3 read: 3 rows have the same .*; add more rows"):
        check_held_out(data, outcomes | {"test": 0}, 3, keys)
