"""Reading a JSONL file that is appended to, truncated, or half written."""

import json
from pathlib import Path

import pytest

from instruct_ray.tracking import jsonl_tail
from instruct_ray.tracking.jsonl_tail import JsonlTail, follow_jsonl


def write(path: Path, steps: list[int], time: float = 0.0, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps({"step": step, "time": time}) + "\n" for step in steps)


def get_steps(records: list[dict[str, float]]) -> list[float]:
    return [record["step"] for record in records]


def test_only_new_complete_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonlTail(path)
    assert tail.read_new() == []
    write(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3')
    assert get_steps(tail.read_new()) == [1, 2]
    assert tail.read_new() == []
    with path.open("a") as file:
        file.write(', "time": 0}\n')
    write(path, [4])
    assert get_steps(tail.read_new()) == [3, 4]


def test_truncated_file_that_grew_again_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonlTail(path)
    write(path, [1, 2, 3])
    assert get_steps(tail.read_new()) == [1, 2, 3]
    # A restarted worker repeats step 3 and does two more before the next read.
    write(path, [1, 2], mode="w")
    write(path, [3, 4, 5], time=1.0)
    assert get_steps(tail.read_new()) == [1, 2, 3, 4, 5]
    path.write_text("")
    assert tail.read_new() == []
    write(path, [1])
    assert get_steps(tail.read_new()) == [1]


def test_long_file_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_tail, "MAX_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    write(path, list(range(20)))
    tail, batches = JsonlTail(path), []
    while records := tail.read_new():
        batches.append(get_steps(records))
    assert len(batches) > 3
    assert [step for batch in batches for step in batch] == list(range(20))


def test_corrupted_line_is_logged_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    assert get_steps(JsonlTail(path).read_new()) == [1, 3]
    assert f"{path}: skipped a line that is not JSON" in caplog.text


def test_follow_jsonl_reads_the_last_lines_when_it_ends(tmp_path: Path) -> None:
    path, records = tmp_path / "metrics.jsonl", []
    with follow_jsonl(path, records.append):
        write(path, [1, 2, 3])
    assert get_steps(records) == [1, 2, 3]
