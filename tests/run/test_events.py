"""A notice is read once, by those who were there before it."""

from pathlib import Path

from instruct_ray.run.events import RunEvents, log_event


def test_notices_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    notices = RunEvents(path)
    assert notices.read_new() == []
    log_event(path, "one")
    log_event(path, "two\nlines")
    assert notices.read_new() == ["one", "two\nlines"]
    assert notices.read_new() == []
    log_event(path, "drei ☂")
    assert notices.read_new() == ["drei ☂"]


def test_those_of_an_earlier_start_are_not_said_again(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    log_event(path, "old")
    notices = RunEvents(path)
    log_event(path, "new")
    assert notices.read_new() == ["new"]


def test_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    notices = RunEvents(path)
    path.write_text('{"notice": "hal')
    assert notices.read_new() == []
    path.write_text('{"notice": "half"}\n')
    assert notices.read_new() == ["half"]
