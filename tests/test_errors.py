"""Exit codes."""

import os
import signal

import pytest

from instruct_ray.errors import InputError, RunFailedError, UnavailableError, exit_codes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a.jsonl: row 3 has no output"), 2, "error: a.jsonl: row 3 has no output\n"),
        (UnavailableError("registry.uri: http://x can't be used now"), 1, "error: registry.uri: http://x can't be"),
        (RunFailedError("training stopped: the disk is full"), 1, "error: training stopped: the disk is full\n"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_input_errors_and_ctrl_c_print_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info, exit_codes():
        raise error
    assert exit_info.value.code == code
    assert capsys.readouterr().err.startswith(message)


def test_other_errors_have_a_traceback_and_end_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, exit_codes():
        raise ValueError("the shapes differ:\nof one row")
    assert exit_info.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: ValueError: of one row"


def test_sigterm_raises_system_exit() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info, exit_codes():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    signal.signal(signal.SIGTERM, handler)
    assert exit_info.value.code == 143
