"""The run lock: one process at a time; a dead owner's lock is taken over, and an owner that lost its lock stops."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instruct_ray.errors import InputError
from instruct_ray.run import lock, lock_file
from instruct_ray.run.lock import RunLockLostError, run_lock
from instruct_ray.run.lock_file import EXPIRY_SECONDS, LOCK_FILE, LockOwner, LockState, current_process
from instruct_ray.training.worker.run_folder_monitor import POLL_SECONDS, RunFolderMonitor

NUM_PROCESSES, NUM_FOLDERS = 8, 10
HOLD_LOCK = """
import sys, time
from pathlib import Path
from instruct_ray.run.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
ELSEWHERE = LockOwner(host="elsewhere", pid=1, process_start_time=0.0, token="t")


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that are renewed often and expire soon."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lock_file, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(lock_file, "POLL_SECONDS", 0.05)


def write_lock(folder: Path, owner: LockOwner, age: float = 0.0) -> None:
    path = folder / LOCK_FILE
    path.write_text(owner.model_dump_json())
    os.utime(path, (time.time() - age, time.time() - age))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_processes_that_start_at_once_exclude_each_other(tmp_path: Path) -> None:
    """In every second folder they find the lock of a dead process."""
    dead = current_process().model_copy(update={"process_start_time": 0.0, "token": "dead"})
    for number in range(NUM_FOLDERS):
        (tmp_path / str(number)).mkdir()
        if number % 2:
            write_lock(tmp_path / str(number), dead)
    command = [sys.executable, "-m", "tests.run.lock_probe", str(tmp_path), str(NUM_FOLDERS)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(NUM_PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start_time = str(time.time() + 0.2)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start_time}\n")
        process.stdin.flush()
    counts = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    # At least one in each folder; another one where it came after the first was done.
    assert sum(num_held for num_held, _ in counts) >= NUM_FOLDERS
    assert sum(num_clashes for _, num_clashes in counts) == 0
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("is_free", [True, False])
def test_lock_that_is_taken_between_looking_and_taking_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_free: bool
) -> None:
    """Two processes find the same dead lock, or none; the slower one sees what the faster one did."""
    path, faster, slower = tmp_path / LOCK_FILE, current_process(), current_process()
    if not is_free:
        write_lock(tmp_path, ELSEWHERE, age=2 * EXPIRY_SECONDS)
    is_dead, taken = lock_file._is_dead, []

    def taken_after_the_look(path: Path, state: LockState) -> bool:
        result = is_dead(path, state)
        if not taken:
            taken.append(True)
            lock_file.acquire(path, faster)
        return result

    monkeypatch.setattr(lock_file, "_is_dead", taken_after_the_look)
    if is_free:
        lock_file.acquire(path, faster)
        taken.append(True)
    with pytest.raises(InputError, match="is working on this run"):
        lock_file.acquire(path, slower)
    assert LockOwner.model_validate_json(path.read_text()) == faster
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("short_times")
def test_process_that_died_while_it_took_over_a_lock_blocks_nobody(tmp_path: Path) -> None:
    write_lock(tmp_path, ELSEWHERE, age=2 * EXPIRY_SECONDS)
    (tmp_path / f"{LOCK_FILE}.{ELSEWHERE.token}.0").write_text(ELSEWHERE.model_dump_json())
    with run_lock(tmp_path):
        assert LockOwner.model_validate_json((tmp_path / LOCK_FILE).read_text()).pid == os.getpid()
    assert not list(tmp_path.iterdir())


def test_second_process_is_refused_and_the_owner_is_named(tmp_path: Path, other_process: subprocess.Popen[str]) -> None:
    message = f"process {other_process.pid} on .* is working on this run"
    with pytest.raises(InputError, match=message), run_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).is_file()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("is_reaped", [True, False])
def test_lock_of_a_killed_process_is_taken_over_immediately(
    tmp_path: Path, other_process: subprocess.Popen[str], *, is_reaped: bool
) -> None:
    other_process.kill()
    if is_reaped:
        other_process.wait()
    else:
        # A zombie: its parent has not read its exit status.
        wait_until(lambda: Path(f"/proc/{other_process.pid}/stat").read_text().split()[2] == "Z")
    started = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - started < 5
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("owner", [ELSEWHERE, current_process().model_copy(update={"pid_namespace": "container"})])
def test_dead_owner_that_can_not_be_looked_up_is_waited_for(tmp_path: Path, owner: LockOwner) -> None:
    """On another machine, or in another container whose host has the same name."""
    write_lock(tmp_path, owner, age=0.5)
    started = time.monotonic()
    with run_lock(tmp_path):
        assert 0.3 < time.monotonic() - started < 5
        assert LockOwner.model_validate_json((tmp_path / LOCK_FILE).read_text()).token != owner.token


@pytest.mark.usefixtures("short_times")
def test_owner_elsewhere_that_renews_its_lock_is_respected(tmp_path: Path) -> None:
    write_lock(tmp_path, ELSEWHERE)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.2):
            os.utime(tmp_path / LOCK_FILE)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 1 on elsewhere is working on this run"), run_lock(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()


def test_lock_of_another_host_that_expired_is_taken_over_immediately(tmp_path: Path) -> None:
    write_lock(tmp_path, ELSEWHERE, age=EXPIRY_SECONDS + 5)
    started = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - started < 5


def test_lock_is_released_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "storage" / "run"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_times")
def test_incomplete_lock_file_expires(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text('{"host": ')
    with run_lock(tmp_path) as held:
        held.check()


@pytest.mark.usefixtures("short_times")
def test_lock_is_renewed_after_the_storage_failed_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utime, num_failures = os.utime, [0]

    def fail_at_first(path: Path, times: tuple[float, float] | None = None) -> None:
        if num_failures[0] < 3:
            num_failures[0] += 1
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(path, times)

    with run_lock(tmp_path) as held:
        monkeypatch.setattr(os, "utime", fail_at_first)
        wait_until(lambda: num_failures[0] == 3)
        utime(tmp_path / LOCK_FILE, (0, 0))
        wait_until(lambda: (tmp_path / LOCK_FILE).stat().st_mtime > 0)
        held.check()
        # A machine elsewhere sees a live owner.
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(InputError, match="is working on this run"), run_lock(tmp_path):
            pass


@pytest.mark.usefixtures("short_times")
def test_owner_whose_lock_was_taken_over_writes_no_more(tmp_path: Path) -> None:
    """Neither the process that took the lock nor, once it has looked, its workers; and it leaves the new lock alone."""
    with run_lock(tmp_path) as held:
        held.check()
        with (
            RunFolderMonitor(tmp_path / ".stop", held.ticket, rank=0) as seen,
            RunFolderMonitor(tmp_path / ".stop", held.ticket, rank=1) as other_rank,
        ):
            time.sleep(2 * POLL_SECONDS)
            assert not seen.lock_is_lost
            write_lock(tmp_path, ELSEWHERE)
            wait_until(held.is_lost)
            wait_until(lambda: seen.lock_is_lost)
            assert not other_rank.lock_is_lost
        with pytest.raises(RunLockLostError, match=r"taken over this run \(process 1 on elsewhere\)"):
            held.check()
        with pytest.raises(RunLockLostError, match="taken over this run"):
            held.ticket.check()
    assert LockOwner.model_validate_json((tmp_path / LOCK_FILE).read_text()) == ELSEWHERE


@pytest.mark.usefixtures("short_times")
def test_owner_that_can_not_renew_its_lock_for_long_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(lock, "MAX_UNRENEWED_SECONDS", 0.2)
    with run_lock(tmp_path) as held:
        with monkeypatch.context() as broken:
            broken.setattr(os, "utime", fail)
            wait_until(held.is_lost)
        with pytest.raises(RunLockLostError, match=r"could not be renewed for 0\.2 s"):
            held.check()


def test_folder_that_can_not_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run\.storage: .* can't be written"), run_lock(tmp_path / "file" / "run"):
        pass
