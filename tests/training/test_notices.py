"""A notice is read once, by those who were there before it."""

from pathlib import Path

from instruct_ray.training.notices import Notices, note


def test_notices_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    notices = Notices(path)
    assert notices.new() == []
    note(path, "one")
    note(path, "two\nlines")
    assert notices.new() == ["one", "two\nlines"]
    assert notices.new() == []
    note(path, "drei ☂")
    assert notices.new() == ["drei ☂"]


def test_those_of_an_earlier_start_are_not_said_again(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    note(path, "old")
    notices = Notices(path)
    note(path, "new")
    assert notices.new() == ["new"]


def test_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    notices = Notices(path)
    path.write_text('{"notice": "hal')
    assert notices.new() == []
    path.write_text('{"notice": "half"}\n')
    assert notices.new() == ["half"]
