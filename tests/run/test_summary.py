"""The list of runs, from the files in their folders."""

import json
import os
import time
from pathlib import Path

import pytest

from instruct_ray.files import atomic_write_json
from instruct_ray.run.lock import run_lock
from instruct_ray.run.lock_file import LOCK_FILE
from instruct_ray.run.summary import TAIL_BYTES, RunSummary, list_runs


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was prepared and trained for some steps."""
    folder = tmp_path / "support"
    atomic_write_json(folder / "packs" / "abc" / "manifest.json", {})
    lines = [json.dumps({"step": step, "num_steps": 6000, "seconds": 0.5}) for step in range(1, 5001)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5001, "num')
    assert (folder / "metrics.jsonl").stat().st_size > TAIL_BYTES
    return folder


def only_run(storage: Path) -> RunSummary:
    [run] = list_runs(storage)
    return run


def test_training_has_steps_and_a_time_left(run_dir: Path) -> None:
    with run_lock(run_dir):
        run = only_run(run_dir.parent)
    assert (run.name, run.stage, run.step, run.num_steps) == ("support", "tuning", 5000, 6000)
    assert run.seconds_left == 500
    assert run.owner is not None
    assert f"process {os.getpid()} on " in run.owner


def test_stopped_training_has_none(run_dir: Path) -> None:
    run = only_run(run_dir.parent)
    assert (run.stage, run.step, run.seconds_left, run.owner) == ("prepared", 5000, None, None)


def test_owner_that_died_works_on_nothing(run_dir: Path) -> None:
    with run_lock(run_dir):
        long_ago = time.time() - 3600
        os.utime(run_dir / LOCK_FILE, (long_ago, long_ago))
        assert only_run(run_dir.parent).stage == "prepared"


def test_registered_run_has_version_and_verdict(run_dir: Path) -> None:
    atomic_write_json(run_dir / "model" / "instruct_ray.json", {})
    assert only_run(run_dir.parent).stage == "tuned"
    atomic_write_json(run_dir / "evidence" / "evidence.json", {"verdict": {"outcome": "tune"}})
    assert only_run(run_dir.parent).stage == "evaluated"
    atomic_write_json(run_dir / "version.json", {"name": "support", "version": "3"})
    run = only_run(run_dir.parent)
    assert (run.stage, run.verdict, run.version) == ("registered", "tune", "support/3")


def test_last_changed_run_is_first_and_other_folders_are_none(run_dir: Path) -> None:
    other = run_dir.with_name("earlier")
    atomic_write_json(other / "packs" / "abc" / "manifest.json", {})
    os.utime(other / "packs" / "abc" / "manifest.json", (1, 1))
    for name in ("bases", "versions", ".doctor-1"):
        (run_dir.parent / name).mkdir()
    assert [run.name for run in list_runs(run_dir.parent)] == ["support", "earlier"]
