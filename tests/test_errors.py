"""Exit codes."""

import os
import signal

import pytest

from instruct_ray.errors import InputError, exit_codes


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a.jsonl: row 3 has no output"), 2, "error: a.jsonl: row 3 has no output\n"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped, exit_codes():
        raise error
    assert stopped.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ValueError, match="ours"), exit_codes():
        raise ValueError("ours")


def test_sigterm_unwinds() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, exit_codes():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
