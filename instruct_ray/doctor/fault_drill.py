"""A fault drill: trains a few steps of a run twice, once with a worker killed, and compares rows and weights."""

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.open_run import open_run
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.stream import stream_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.doctor.drill_report import (
    DrillReport,
    StepRows,
    compare_rows,
    compute_recovery,
    load_step_rows,
    max_weight_difference,
    record_step_rows,
)
from instruct_ray.doctor.trial_run import copy_packing_check, temporary_run, trial_plan
from instruct_ray.errors import RunFailedError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.checkpoint.manifest import find_committed
from instruct_ray.training.driver.build_spec import build_worker_spec
from instruct_ray.training.driver.launch import TrainLoop, run_ray_train
from instruct_ray.training.worker.loop import run_worker
from instruct_ray.training.worker.outcome import Ending, TrainOutcome
from instruct_ray.training.worker.spec import WorkerSpec

CHECKPOINT_EVERY = 3
# The last rank is killed when it reads the packs of this step, counted from 0: two steps after the first checkpoint.
KILL_AT_STEP = 5
# How long the kill waits for the first checkpoint to be committed. A model of many GB takes minutes.
COMMIT_SECONDS = 600.0
POLL_SECONDS = 0.05
# Files in the folder of a drill run: the first requests the kill and is removed by it, the second holds its time.
KILL_REQUEST_FILE = "kill_requested"
KILL_TIME_FILE = "killed_at.json"


def run_fault_drill(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> DrillReport:
    """Train a few steps of a run twice, once with a worker killed, and compare rows and weights.

    Both trial runs are written next to the run's folder and removed afterwards. The run itself is not touched.

    Raises:
        InputError: the packs are not prepared, or the base model can't be trained on them.
        RuntimeError: training failed for another reason than the kill; a RunFailedError if it is known.
    """
    run = open_run(config, "tune")
    plan = trial_plan(config, run.packs)
    config = config.model_copy(update={"train": config.train.model_copy(update=_drill_options(config.train))})
    with temporary_run(run.folder, "drill") as parent:
        uninterrupted, interrupted = RunFolder(parent.path / "uninterrupted"), RunFolder(parent.path / "interrupted")
        specs = [build_worker_spec(run, config, folder, plan) for folder in (uninterrupted, interrupted)]
        start_ray()
        status(f"{plan.num_steps} steps without interruption")
        _train(config.train, uninterrupted, specs[0], checked_in=run.folder)
        status(f"{plan.num_steps} steps with a worker killed")
        interrupted.path.mkdir(parents=True)
        (interrupted.path / KILL_REQUEST_FILE).touch()
        _train(config.train, interrupted, specs[1], checked_in=uninterrupted)

        status("comparing rows and weights")
        step_rows = load_step_rows(interrupted.path)
        num_rows, has_planned_rows = compare_rows(load_step_rows(uninterrupted.path), step_rows, run.packs, plan)
        killed_at = json.loads((interrupted.path / KILL_TIME_FILE).read_text())
        num_redone_steps, recovery_seconds = compute_recovery(step_rows, killed_at, plan.num_steps)
        return DrillReport(
            num_steps=plan.num_steps,
            num_rows=num_rows,
            num_redone_steps=num_redone_steps,
            recovery_seconds=recovery_seconds,
            has_planned_rows=has_planned_rows,
            max_weight_difference=max_weight_difference(specs[0].weights_dir, specs[1].weights_dir),
        )


def recording_loop(folder: Path) -> TrainLoop:
    """A train loop whose workers record the rows of each step, and of which one kills itself if that is requested."""

    def train_loop(config: dict[str, Any]) -> TrainOutcome:
        return run_worker(WorkerSpec.model_validate(config["worker_spec"]), read_packs, config["eval_fn"])

    def read_packs(packs_dir: Path, plan: BatchPlan, start: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
        attempt = uuid.uuid4().hex
        for step, packs in enumerate(stream_packs(packs_dir, plan, start, rank, world_size), start):
            if step == KILL_AT_STEP and rank == world_size - 1:
                _kill_self_once(folder)
            rows = [row_id for pack in packs for row_id in pack["row_ids"]]
            record_step_rows(folder, StepRows(step, rank, attempt, rows, time.time()))
            yield packs

    return train_loop


def _train(train: TrainConfig, folder: RunFolder, spec: WorkerSpec, checked_in: RunFolder) -> None:
    """Train a drill run to the end, with the packing check of another run if that has one."""
    folder.path.mkdir(parents=True, exist_ok=True)
    copy_packing_check(checked_in.path, folder.path)
    outcome = run_ray_train(train, folder, spec, loop=recording_loop(folder.path))
    if outcome.ending is not Ending.FINISHED:
        raise RunFailedError(f"training stopped: {outcome.reason}")


def _drill_options(train: TrainConfig) -> dict[str, Any]:
    """Options of the drill runs. An elastic run gets a fixed number of workers: the weights depend on it."""
    return {"checkpoint_every": CHECKPOINT_EVERY, "num_checkpoints": 2, "max_failures": 1, "validation": None} | (
        {"num_workers": train.max_workers} if train.is_elastic else {}
    )


def _kill_self_once(folder: Path) -> None:
    """Kill this process if that is requested, once a checkpoint is committed: the restart must not begin at step 0."""
    request_file = folder / KILL_REQUEST_FILE
    if not request_file.exists():
        return
    deadline = time.monotonic() + COMMIT_SECONDS
    while not find_committed(RunFolder(folder).ray_train_dir) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    request_file.unlink()
    atomic_write_json(folder / KILL_TIME_FILE, time.time())
    os.kill(os.getpid(), signal.SIGKILL)
