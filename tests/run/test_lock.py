"""Two processes never work on one run; a dead one holds nobody up."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instruct_ray.errors import InputError
from instruct_ray.run import lock as lease
from instruct_ray.run.lock import EXPIRY_SECONDS, LOCK_FILE, LockOwner, run_lock

HOLD = """
import sys, time
from pathlib import Path
from instruct_ray.lease import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_and_told_who_is_first(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(InputError, match=f"process {other.pid} on .* is working on this run"), run_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_holder_is_followed_at_once(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    with run_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


def test_it_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "run"):
        raise ZeroDivisionError
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("age", "is_refused"), [(0.0, True), (EXPIRY_SECONDS + 5, False)])
def test_another_machine_holds_it_while_it_renews(tmp_path: Path, age: float, is_refused: bool) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(LockOwner(host="elsewhere", pid=1, started=0.0, token="t").model_dump_json())
    os.utime(path, (time.time() - age, time.time() - age))
    if is_refused:
        with pytest.raises(InputError, match="process 1 on elsewhere"), run_lock(tmp_path):
            pass
    else:
        with run_lock(tmp_path):
            pass


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK_FILE).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > 0


def test_half_a_lease_is_none(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text('{"host": ')
    with run_lock(tmp_path):
        pass
