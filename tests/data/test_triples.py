"""Rows: read exactly, refused by name."""

import json
from pathlib import Path

import pytest

from instruct_ray.data.triples import Triple, check_sources, parse, read_rows
from instruct_ray.errors import InputError

GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def rows_of(tmp_path: Path, content: bytes, name: str = "a.jsonl") -> list[tuple[int, object]]:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_rows(path))


def test_only_line_feeds_end_a_row(tmp_path: Path) -> None:
    text = json.dumps({**GOOD, "input": "a\u2028b\u0085c"}, ensure_ascii=False)
    [(number, row)] = rows_of(tmp_path, text.encode() + b"\r\n")
    assert number == 1
    assert parse(row, "1").input == "a\u2028b\u0085c"


def test_blank_lines_count_but_hold_nothing(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    assert [number for number, _ in rows_of(tmp_path, line + b"\n\n" + line)] == [1, 3]


def test_a_json_array_is_read(tmp_path: Path) -> None:
    assert len(rows_of(tmp_path, json.dumps([GOOD, GOOD]).encode(), "a.json")) == 2


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"{bad", "a.jsonl"), (b"\xff\xfe", "a.jsonl"), (b"[" * 200_000, "a.jsonl"), (b"{", "a.json"), (b"{}", "a.json")],
)
def test_what_is_not_json_is_said(tmp_path: Path, content: bytes, name: str) -> None:
    [(_, row)] = rows_of(tmp_path, content, name)
    with pytest.raises(InputError, match=r"is not (JSON|an array)"):
        parse(row, "1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "input": "b"}, "has no output"),
        ({**GOOD, "output": " \n"}, "has an empty output: nothing to train on"),
        ({**GOOD, "instruction": ""}, "has an empty instruction"),
        ({**GOOD, "input": None}, "has input = None, which is not text"),
        ({**GOOD, "output": 3}, "has output = 3, which is not text"),
        ([1], "is list, not an object"),
        ("text", "is str, not an object"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(row, "1")


def test_input_may_be_missing_and_id_is_kept() -> None:
    triple = parse({"id": 7, "instruction": "a", "output": "b"}, "0:1")
    assert triple == Triple("7", "a", "", "b")


def test_a_reworded_instruction_stays_on_its_side() -> None:
    texts = [f"report {number}" for number in range(200)]
    sides = [Triple("a", "Rate this.", text, "x").is_test(0.25) for text in texts]
    reworded = [Triple("b", "How bad?", f"  {text.upper()} ", "x").is_test(0.25) for text in texts]
    assert sides == reworded
    assert 20 < sum(sides) < 80


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("none.jsonl", None, "no file"), ("a.txt", b"x", "neither"), ("a.jsonl", b"", "is empty")],
)
def test_unusable_sources_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        check_sources((path,))
    assert str(path) in str(error.value)


def test_a_folder_named_like_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(InputError, match="no file"):
        check_sources((tmp_path / "x.jsonl",))
