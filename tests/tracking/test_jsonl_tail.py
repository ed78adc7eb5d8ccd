"""Lines that are appended, cut and half written."""

import json
from pathlib import Path

import pytest

from instruct_ray.tracking import jsonl_tail as tail
from instruct_ray.tracking.jsonl_tail import JsonlTail, follow_jsonl


def write(path: Path, steps: list[int], time: float = 0.0, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps({"step": step, "time": time}) + "\n" for step in steps)


def steps_of(records: list[dict[str, float]]) -> list[float]:
    return [record["step"] for record in records]


def test_only_what_is_new_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    found = JsonlTail(path)
    assert found.new() == []
    write(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3')
    assert steps_of(found.new()) == [1, 2]
    assert found.new() == []
    with path.open("a") as file:
        file.write(', "time": 0}\n')
    write(path, [4])
    assert steps_of(found.new()) == [3, 4]


def test_a_file_that_was_cut_and_has_grown_again_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    found = JsonlTail(path)
    write(path, [1, 2, 3])
    assert steps_of(found.new()) == [1, 2, 3]
    # A restarted worker does step 3 again, and more, before the next look.
    write(path, [1, 2], mode="w")
    write(path, [3, 4, 5], time=1.0)
    assert steps_of(found.new()) == [1, 2, 3, 4, 5]
    path.write_text("")
    assert found.new() == []
    write(path, [1])
    assert steps_of(found.new()) == [1]


def test_a_long_file_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    write(path, list(range(20)))
    found, pieces = JsonlTail(path), []
    while records := found.new():
        pieces.append(steps_of(records))
    assert len(pieces) > 3
    assert [step for piece in pieces for step in piece] == list(range(20))


def test_a_damaged_line_is_named_and_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    assert steps_of(JsonlTail(path).new()) == [1, 3]
    assert f"{path}: a line is damaged" in caplog.text


def test_followed_misses_nothing_at_its_end(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []
    with follow_jsonl(path, seen.append):
        write(path, [1, 2, 3])
    assert steps_of(seen) == [1, 2, 3]
