"""The run's log after a restart, and on a storage that is full."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_ray.run import line_writer
from instruct_ray.training.checkpoint.checkpointer import ResumePoint
from instruct_ray.training.worker import run_log
from instruct_ray.training.worker.run_log import RunLog
from instruct_ray.training.worker.step import StepResult
from tests.small_disk import NoSmallDiskError, fill_disk, small_disk

RESULT = StepResult(1.5, 0.5, 10, 10, 2, was_applied=True, nonfinite_row_ids=())


@pytest.fixture
def make_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    (tmp_path / "local").mkdir()
    monkeypatch.chdir(tmp_path / "local")
    monkeypatch.setattr(line_writer, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(line_writer, "CLOSE_SECONDS", 1.0)

    def make(folder: Path, resume_step: int = 0) -> RunLog:
        plan = SimpleNamespace(num_steps=8, steps_per_epoch=4)
        names = {f"{name}_file": folder / f"{name}.jsonl" for name in ("metrics", "events", "checkpoints")}
        spec = SimpleNamespace(**names, plan=plan, lock=None)
        meter = SimpleNamespace(record=lambda num_computed_tokens, seconds: {})
        return RunLog(spec, meter, ResumePoint(resume_step), is_writer=True)

    return make


def log_steps(log: RunLog, *steps: int) -> None:
    for step in steps:
        log.log_step(step, RESULT, {"seconds": 0.1})


def read(path: Path, key: str) -> list[Any]:
    return [json.loads(line)[key] for line in path.read_text().splitlines()]


def test_steps_after_the_checkpoint_are_logged_again_once(tmp_path: Path, make_log: Callable[..., RunLog]) -> None:
    log = make_log(tmp_path)
    log_steps(log, 1, 2, 3, 4)
    assert log.close() == ()
    # Killed in the middle of a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    log = make_log(tmp_path, resume_step=3)
    log_steps(log, 4, 5, 6)
    assert log.close() == ()
    assert read(tmp_path / "metrics.jsonl", "step") == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "events.jsonl").exists()


def test_missing_steps_are_counted(tmp_path: Path, make_log: Callable[..., RunLog]) -> None:
    """A killed attempt could not write them, and only steps after the checkpoint are trained again."""
    log = make_log(tmp_path)
    log_steps(log, 1, 2, 5, 6)
    log.close()
    log = make_log(tmp_path, resume_step=5)
    log_steps(log, 6)
    log.close()
    assert read(tmp_path / "metrics.jsonl", "step") == [1, 2, 5, 6]
    [event] = read(tmp_path / "events.jsonl", "message")
    assert "metrics.jsonl lacks 2 of the 5 steps before" in event


def test_full_storage_ends_no_step_and_is_said(
    tmp_path: Path, make_log: Callable[..., RunLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: list[str | None] = []
    monkeypatch.setattr(run_log, "publish_storage_problem", lambda run_dir, problem: problems.append(problem))
    monkeypatch.setattr(run_log, "CHECK_SECONDS", 0.02)
    try:
        with small_disk(tmp_path / "storage", 2**16) as folder:
            fill_disk(folder)
            log = make_log(folder)
            log_steps(log, 1, 2, 3)
            log.log_event("the disk is full")
            deadline = time.monotonic() + 10
            while not problems and time.monotonic() < deadline:
                time.sleep(0.01)
            lost_metrics, lost_events = log.close()
    except NoSmallDiskError as error:
        pytest.skip(str(error))
    assert "3 line(s) of " in lost_metrics and "metrics.jsonl could not be written (No space left" in lost_metrics
    # The second says that metrics are missing.
    assert "2 line(s) of " in lost_events and "events.jsonl could not be written (No space left" in lost_events
    assert problems[0] is not None
    assert problems[0].endswith("can't be written: No space left on device")
    assert problems[-1] is None
