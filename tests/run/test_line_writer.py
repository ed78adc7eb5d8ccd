"""Lines reach the storage in order and once, whatever the storage does, and its caller never waits."""

import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instruct_ray.run import line_writer
from instruct_ray.run.line_writer import LineWriter
from instruct_ray.run.lock import run_lock
from instruct_ray.run.lock_file import LOCK_FILE, LockOwner
from tests.small_disk import NoSmallDiskError, fill_disk, small_disk

NUM_LINES = 500
# Of 500 appends; each takes microseconds.
MAX_APPEND_SECONDS = 1.0


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(line_writer, "CLOSE_SECONDS", 2.0)


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    try:
        with small_disk(tmp_path / "storage", 2**16) as folder:
            yield folder
    except NoSmallDiskError as error:
        pytest.skip(str(error))


def append_lines(writer: LineWriter, first: int = 0) -> None:
    started = time.monotonic()
    for number in range(first, first + NUM_LINES):
        writer.append({"step": number})
    assert time.monotonic() - started < MAX_APPEND_SECONDS


def read_steps(path: Path) -> list[int]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_are_written_in_order(tmp_path: Path, spool_dir: Path) -> None:
    target = tmp_path / "metrics.jsonl"
    # A killed process did not finish its last line.
    target.write_text('{"step": -1}\n{"ste')
    writer = LineWriter(target, spool_dir, None)
    append_lines(writer)
    wait_until(lambda: target.read_bytes().count(b"\n") == NUM_LINES + 2)
    assert writer.problem is None
    append_lines(writer, NUM_LINES)
    assert writer.close() is None
    before, torn, *lines = target.read_text().splitlines()
    assert (before, torn) == ('{"step": -1}', '{"ste')
    assert [json.loads(line)["step"] for line in lines] == list(range(2 * NUM_LINES))
    assert not list(spool_dir.iterdir())


def test_full_disk_delays_lines_and_loses_none(disk: Path, spool_dir: Path) -> None:
    target = disk / "metrics.jsonl"
    writer = LineWriter(target, spool_dir, None)
    append_lines(writer)
    wait_until(lambda: target.exists() and target.read_bytes().count(b"\n") == NUM_LINES)
    filler = fill_disk(disk)
    append_lines(writer, NUM_LINES)
    wait_until(lambda: writer.problem is not None)
    assert writer.problem == f"{target} can't be written: No space left on device"
    filler.unlink()
    wait_until(lambda: writer.problem is None)
    assert writer.close() is None
    assert read_steps(target) == list(range(2 * NUM_LINES))


def test_lines_that_a_full_disk_never_took_are_counted_and_kept(disk: Path, spool_dir: Path) -> None:
    target = disk / "metrics.jsonl"
    fill_disk(disk)
    writer = LineWriter(target, spool_dir, None)
    append_lines(writer)
    message = writer.close()
    [spool] = spool_dir.iterdir()
    assert message is not None
    assert message.startswith(f"{NUM_LINES} line(s) of {target} could not be written (No space left on device), ")
    assert f"of which {NUM_LINES} are in {spool} on " in message
    assert read_steps(spool) == list(range(NUM_LINES))
    # No half line is left.
    assert not target.read_bytes()


def test_write_that_fails_halfway_is_neither_lost_nor_doubled(
    tmp_path: Path, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, which reports an error after some of the bytes or all of them were written."""
    target, append = tmp_path / "metrics.jsonl", LineWriter._append_to_target
    fractions = [0.0, 0.3, 0.7, 1.0]

    def fail_halfway(writer: LineWriter, content: bytes) -> None:
        if not fractions:
            append(writer, content)
            return
        # The error comes when the file is closed.
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", lambda path, mode: HalfWritten(path, mode, fractions.pop()))
            append(writer, content)

    class HalfWritten:
        def __init__(self, path: Path, mode: str, fraction: float) -> None:
            self._file, self._fraction = open(path, mode), fraction  # noqa: SIM115  (Path.open is replaced)

        def __enter__(self) -> "HalfWritten":
            return self

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def write(self, content: bytes) -> int:
            return self._file.write(content[: int(self._fraction * len(content))])

        def __exit__(self, *_: object) -> None:
            self._file.close()
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(LineWriter, "_append_to_target", fail_halfway)
    writer = LineWriter(target, spool_dir, None)
    append_lines(writer)
    assert writer.close() is None
    assert not fractions
    assert read_steps(target) == list(range(NUM_LINES))


def test_storage_that_does_not_answer_is_reported(
    tmp_path: Path, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(line_writer, "CLOSE_SECONDS", 0.2)
    answers, target = threading.Event(), tmp_path / "metrics.jsonl"
    monkeypatch.setattr(LineWriter, "_append_to_target", lambda *_: answers.wait())
    writer = LineWriter(target, spool_dir, None)
    append_lines(writer)
    wait_until(lambda: writer.problem == f"{target}: a write takes longer than 0.1 s")
    message = writer.close()
    answers.set()
    assert message is not None
    assert message.startswith(f"{NUM_LINES} line(s) of {target} could not be written (no answer), ")


def test_lines_stay_in_memory_up_to_a_limit_where_this_machine_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "MAX_LINES_IN_MEMORY", 300)
    storage = tmp_path / "storage"
    writer = LineWriter(storage / "metrics.jsonl", tmp_path / "no-such-folder", None)
    append_lines(writer)
    # Now the storage is there.
    storage.mkdir()
    message = writer.close()
    assert message == f"200 line(s) of {storage / 'metrics.jsonl'} are lost: this machine had no room either"
    assert read_steps(storage / "metrics.jsonl") == list(range(300))


def test_preparation_is_tried_until_it_succeeds_and_comes_first(tmp_path: Path, spool_dir: Path) -> None:
    target, failures = tmp_path / "metrics.jsonl", [errno.ESTALE, errno.EIO]

    def prepare() -> None:
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        target.write_text('{"step": -1}\n')

    writer = LineWriter(target, spool_dir, None, prepare)
    append_lines(writer)
    assert writer.close() is None
    assert read_steps(target) == list(range(-1, NUM_LINES))


def test_nothing_is_written_once_another_process_has_taken_over_the_run(tmp_path: Path, spool_dir: Path) -> None:
    run_folder = tmp_path / "run"
    target = run_folder / "metrics.jsonl"
    with run_lock(run_folder) as lock:
        writer = LineWriter(target, spool_dir, lock.ticket)
        append_lines(writer)
        wait_until(lambda: len(read_steps(target)) == NUM_LINES)
        other = LockOwner(host="elsewhere", pid=1, process_start_time=0.0, token="t")
        (run_folder / LOCK_FILE).write_text(other.model_dump_json())
        append_lines(writer, NUM_LINES)
        message = writer.close()
    assert read_steps(target) == list(range(NUM_LINES))
    assert message is not None
    assert message.startswith(f"{NUM_LINES} line(s) of {target} could not be written")
    assert "another process has taken over this run" in message


def test_a_process_that_lost_the_run_does_not_prepare_its_file(tmp_path: Path, spool_dir: Path) -> None:
    run_folder, calls = tmp_path / "run", []
    with run_lock(run_folder) as lock:
        other = LockOwner(host="elsewhere", pid=1, process_start_time=0.0, token="t")
        (run_folder / LOCK_FILE).write_text(other.model_dump_json())
        LineWriter(run_folder / "metrics.jsonl", spool_dir, lock.ticket, lambda: calls.append(1)).close()
    assert not calls
