"""The run lock: a second process is refused, and the lock of a dead process is taken over."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instruct_ray.errors import InputError
from instruct_ray.run import lock
from instruct_ray.run.lock import EXPIRY_SECONDS, LOCK_FILE, LockOwner, run_lock

HOLD_LOCK = """
import sys, time
from pathlib import Path
from instruct_ray.run.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_and_the_owner_is_named(tmp_path: Path, other_process: subprocess.Popen[str]) -> None:
    message = f"process {other_process.pid} on .* is working on this run"
    with pytest.raises(InputError, match=message), run_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_lock_of_a_killed_process_is_taken_over_immediately(
    tmp_path: Path, other_process: subprocess.Popen[str]
) -> None:
    other_process.kill()
    other_process.wait()
    with run_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


def test_lock_is_released_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "run"):
        raise ZeroDivisionError
    assert not list((tmp_path / "run").iterdir())


def test_lock_that_another_process_took_over_is_not_released(tmp_path: Path) -> None:
    path = tmp_path / LOCK_FILE
    with run_lock(tmp_path):
        path.write_text(LockOwner(host="elsewhere", pid=1, process_start_time=0.0, token="t").model_dump_json())
    assert path.is_file()


@pytest.mark.parametrize(("age", "is_refused"), [(0.0, True), (EXPIRY_SECONDS + 5, False)])
def test_lock_of_another_host_is_valid_until_it_expires(tmp_path: Path, age: float, is_refused: bool) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(LockOwner(host="elsewhere", pid=1, process_start_time=0.0, token="t").model_dump_json())
    os.utime(path, (time.time() - age, time.time() - age))
    if is_refused:
        with pytest.raises(InputError, match="process 1 on elsewhere"), run_lock(tmp_path):
            pass
    else:
        with run_lock(tmp_path):
            pass


def test_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK_FILE).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > 0


def test_incomplete_lock_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text('{"host": ')
    with run_lock(tmp_path):
        pass
