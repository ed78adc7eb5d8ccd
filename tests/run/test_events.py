"""Events are read once, and only those written after the reader was created."""

from pathlib import Path

import pytest

from instruct_ray.files import append_json_line
from instruct_ray.run.events import RunEvents, event_record


def log_event(path: Path, message: str) -> None:
    append_json_line(path, event_record(message))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_each_event_is_read_once(path: Path) -> None:
    events = RunEvents(path)
    assert events.read_new() == []
    log_event(path, "one")
    log_event(path, "two\nlines")
    assert events.read_new() == ["one", "two\nlines"]
    assert events.read_new() == []
    log_event(path, "three ☂")
    assert events.read_new() == ["three ☂"]


def test_events_of_an_earlier_attempt_are_not_read(path: Path) -> None:
    log_event(path, "old")
    events = RunEvents(path)
    log_event(path, "new")
    assert events.read_new() == ["new"]


def test_incomplete_line_is_read_once_it_is_complete(path: Path) -> None:
    events = RunEvents(path)
    path.write_text('{"message": "hal')
    assert events.read_new() == []
    path.write_text('{"message": "half"}\n')
    assert events.read_new() == ["half"]


def test_line_that_a_killed_process_did_not_finish_is_skipped(path: Path) -> None:
    events = RunEvents(path)
    path.write_text('{"message": "ha\n{"message": "whole"}\n')
    assert events.read_new() == ["whole"]
