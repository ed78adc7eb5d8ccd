"""The status line where there is no terminal: a line every few seconds."""

import time

import pytest

from instruct_ray import console
from instruct_ray.console import StatusLine, plain_pause


def test_log_gets_a_line_at_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "LOG_SECONDS", 0.1)
    with StatusLine("tune") as status:
        time.sleep(0.15)
        for step in range(1000):
            status(f"step {step} [of] many")
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tune: starting (")
    assert lines[-1].startswith("tune: step 999 [of] many (")
    assert len(lines) <= 5


def test_log_of_a_long_command_gets_fewer_lines() -> None:
    assert [plain_pause(seconds) for seconds in (4, 600, 3600, 86_400)] == [4, 4, 24, 60]


def test_exception_ends_the_status_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), StatusLine("tune"):
        raise RuntimeError
    assert capsys.readouterr().out == ""
