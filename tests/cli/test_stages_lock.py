"""Every stage that writes a run holds its lock, and stops before it writes when another process took the lock over."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.errors import InputError
from instruct_ray.evidence.benchmarks.run import run_benchmarks
from instruct_ray.evidence.evaluate import evaluate
from instruct_ray.files import atomic_write_json
from instruct_ray.registry.register import register
from instruct_ray.run.folder import RunFolder
from instruct_ray.run.lock import RunLockLostError, run_lock
from instruct_ray.run.lock_file import LOCK_FILE, LockOwner
from instruct_ray.training.driver.tune import tune
from tests.fakes import fail_if_ray_starts, ignore_status, ray_is_running

STAGES: dict[str, Callable[[Config], object]] = {
    "prepare": lambda config: prepare(config, fail_if_ray_starts),
    "tune": lambda config: tune(config, ignore_status, fail_if_ray_starts),
    "evaluate": lambda config: evaluate(config, ignore_status, fail_if_ray_starts),
    "benchmark": lambda config: run_benchmarks(config, ignore_status, fail_if_ray_starts),
    "register": lambda config: register(config, ignore_status),
}


@pytest.fixture
def copied(tuned: Config, tmp_path: Path) -> Config:
    """A copy of the tuned run, with evidence that lets it be registered."""
    folder = RunFolder.from_config(tuned).path
    shutil.copytree(folder, tmp_path / folder.name)
    return tuned.model_copy(update={"run": tuned.run.model_copy(update={"storage": tmp_path})})


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_refused_while_another_process_works_on_the_run(copied: Config, stage: str) -> None:
    folder = RunFolder.from_config(copied)
    # As the stage before it left the run.
    if stage == "prepare":
        shutil.rmtree(folder.packs_dir)
    if stage == "tune":
        shutil.rmtree(folder.model_dir)
    if stage == "register":
        atomic_write_json(folder.evidence_file, {"arms": {}})
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    with run_lock(folder.path), pytest.raises(InputError, match="is working on this run"):
        STAGES[stage](copied)
    after = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert {**after, folder.path: 0} == {**before, folder.path: 0}


def test_training_stops_before_it_writes_more_when_the_lock_is_taken_over(
    make_config: Callable[..., Config], ray_4_cpus: None
) -> None:
    config = make_config(train={"epochs": 400, "examples_per_step": 12, "checkpoint_every": 2})
    folder = RunFolder.from_config(config)
    prepare(config, ray_is_running)
    num_steps: list[int] = []

    def count_steps() -> int:
        return len(folder.metrics_file.read_text().splitlines()) if folder.metrics_file.is_file() else 0

    def take_over() -> None:
        while count_steps() < 3:
            time.sleep(0.05)
        other = LockOwner(host="elsewhere", pid=1, process_start_time=0.0, token="t")
        (folder.path / LOCK_FILE).write_text(other.model_dump_json())
        num_steps.append(count_steps())

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(RunLockLostError, match=r"taken over this run"):
        tune(config, ignore_status, ray_is_running)
    thread.join()
    record = json.loads((folder.path / "mlflow.json").read_text())
    num_steps.append(count_steps())
    time.sleep(3)
    # Even if workers train on until they look at the lock, every 2 seconds.
    assert count_steps() == num_steps[1] < 400
    assert record["final_status"] is None
    assert not folder.model_dir.exists()
    assert "elsewhere" in (folder.path / LOCK_FILE).read_text()
