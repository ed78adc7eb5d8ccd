"""driver: the tune stage. Checks the run, trains it with Ray Train, and assembles the model folder."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from instruct_ray.base_model.record import record_base
from instruct_ray.config.schema import Config
from instruct_ray.config.train import ValidationConfig
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.errors import RunFailedError, one_line
from instruct_ray.run.events import RunEvents
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from instruct_ray.run.lock import RunLock, run_lock
from instruct_ray.tracking.jsonl_tail import follow_jsonl
from instruct_ray.tracking.tracked_run import TrackedRun, finish_pending_upload, load_tracking_record
from instruct_ray.training.capacity.checks import check_capacity, raise_if_failed
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.checkpoint.recovery import delete_unreferenced, recover_checkpoint_dir
from instruct_ray.training.driver.build_spec import build_plan, build_worker_spec
from instruct_ray.training.driver.launch import run_ray_train
from instruct_ray.training.driver.model_folder import assemble_model_dir
from instruct_ray.training.driver.pending_workers import report_pending_workers
from instruct_ray.training.driver.progress import Progress
from instruct_ray.training.driver.run_metrics import RunFigures, export_run_metrics
from instruct_ray.training.driver.signals import run_in_thread, stop_on_signal
from instruct_ray.training.driver.storage_monitor import report_storage_problems
from instruct_ray.training.driver.trained_tokens import record_trained_tokens
from instruct_ray.training.driver.validation_outcome import find_validation_problem
from instruct_ray.training.validation.task import EvalFn
from instruct_ray.training.worker.outcome import Ending
from instruct_ray.training.worker.spec import WorkerSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneResult:
    """A tuned model on disk."""

    folder: Path
    already_done: bool
    """Whether an earlier command had made the model."""


def tune(
    config: Config, status: Callable[[str], None], start_ray: Callable[[], None], eval_fn: EvalFn | None = None
) -> TuneResult:
    """Train to the end of the plan, resuming from the newest checkpoint if there is one, and export the model.

    `start_ray` is called once the input is known to be valid; `eval_fn` evaluates a checkpoint for `train.validation`.

    Raises:
        InputError: the packs are not prepared, the config changed since the run started, the cluster lacks resources,
            or another process is working on the run.
        RunFailedError: training stopped for a known reason, or every validation failed.
        RuntimeError: training failed more than `train.max_failures` times.
    """
    run = open_run(config, "tune")
    if _is_tuned(run) and load_tracking_record(config).is_uploaded:
        return TuneResult(run.folder.model_dir, already_done=True)
    plan = build_plan(config, run.packs)
    with run_lock(run.folder.path) as lock:
        if _is_tuned(run):
            finish_pending_upload(config, logger.warning)
            return TuneResult(run.folder.model_dir, already_done=True)
        spec = build_worker_spec(run, config, run.folder, plan).model_copy(update={"lock": lock.ticket})
        checkpoint_problems = recover_checkpoint_dir(run.folder.ray_train_dir)
        _check_cluster(run, spec, status, start_ray)
        lock.check()
        record_trained_tokens(run, spec.token_ids)
        # Only now: the config of a run that a check refuses may still be changed.
        run.freeze()
        record_base(config, run.base_model)
        for problem in checkpoint_problems:
            logger.warning("%s; resuming from the newest intact checkpoint", problem)
        mlflow_run_id = _train(run, spec, lock, status, eval_fn)
        lock.check()
        assemble_model_dir(run, spec, mlflow_run_id)
    if config.train.validation and eval_fn:
        _check_validated(run.folder, config.train.validation)
    return TuneResult(run.folder.model_dir, already_done=False)


def _is_tuned(run: OpenRun) -> bool:
    return (run.folder.model_dir / MODEL_METADATA_FILE).is_file()


def _check_validated(folder: RunFolder, validation: ValidationConfig) -> None:
    """Fail if every validation failed. The model is kept: it is complete, and a later stage may be run with it."""
    problem = find_validation_problem(folder.validation_scores_file, validation)
    if problem is not None:
        raise RunFailedError(
            f"{problem}; the reasons are in {folder.events_file}. The model in {folder.model_dir} is complete, but not "
            "chosen by train.validation as configured"
        )


def _check_cluster(
    run: OpenRun, spec: WorkerSpec, status: Callable[[str], None], start_ray: Callable[[], None]
) -> None:
    """Start Ray, check that the cluster can train the run, and log the warnings of the checks.

    Raises:
        InputError: a check failed.
    """
    train = run.config.train
    sizer = ModelSizer.from_packs(run.hf_config, spec.packing_incompatibility, run.packs, train, spec.token_ids)
    start_ray()
    status("checking the cluster")
    findings = check_capacity(CheckInput(run.folder.path, spec.lora, train, sizer))
    raise_if_failed(findings)
    _log_warnings(findings)
    if notice := run.describe_untrained_tokens():
        logger.warning("%s", notice)


def _train(
    run: OpenRun, spec: WorkerSpec, lock: RunLock, status: Callable[[str], None], eval_fn: EvalFn | None
) -> str | None:
    """Train to the end of the plan and report progress to MLflow and the status line.

    Returns the id of the MLflow run; None if there is none.

    Raises:
        RunFailedError: training stopped for a known reason.
        RuntimeError: training failed more than `train.max_failures` times.
        RunLockLostError: another process has taken over the run.
        KeyboardInterrupt, SystemExit: a signal stopped training.
    """
    train = run.config.train
    workers = f"{train.min_workers} to {train.max_workers}" if train.is_elastic else train.num_workers
    status(f"starting {workers} worker(s), ZeRO-{train.zero_stage}")
    tracked = TrackedRun(run.config, logger.warning)
    tracked.start()
    events = RunEvents(spec.events_file)
    figures = RunFigures(spec.plan.num_steps, train.checkpoint_every, time.time())
    final_status = "FAILED"
    train_run = partial(run_ray_train, train, run.folder, spec, eval_fn)
    try:
        with (
            stop_on_signal(spec.stop_file, status) as request,
            report_pending_workers(spec.metrics_file, train, status) as pending,
            report_storage_problems(run.folder.path) as storage,
            export_run_metrics(run.config.run.name, figures, pending, storage),
            follow_jsonl(spec.metrics_file, _make_step_callback(status, events, figures)),
            follow_jsonl(spec.checkpoints_file, figures.add_checkpoint),
        ):
            try:
                outcome = run_in_thread(train_run, lock.raise_if_lost)
            finally:
                # If it is lost, that is why the workers failed or stopped.
                lock.check()
            if outcome.ending is Ending.INTERRUPTED:
                request.reraise()
        for message in outcome.unwritten:
            logger.warning("%s", message)
        if outcome.ending is Ending.FAILED:
            raise RunFailedError(f"training stopped: {outcome.reason}")
        _delete_unreferenced(spec)
        final_status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        final_status = "KILLED"
        raise
    finally:
        if lock.is_lost():
            tracked.abandon()
        else:
            tracked.finish(final_status)
        _log_events(events)
    return tracked.id


def _delete_unreferenced(spec: WorkerSpec) -> None:
    try:
        delete_unreferenced(spec.checkpoint_dir, spec.train.num_checkpoints)
    except OSError as error:
        logger.warning("%s: old checkpoints were not removed: %s", spec.checkpoint_dir, one_line(error))


def _log_warnings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.verdict == "warning":
            logger.warning("%s: %s", finding.check, finding.message)


def _log_events(events: RunEvents) -> None:
    """Log new events: unlike the status line, the log is not overwritten."""
    for message in events.read_new():
        logger.warning("%s", message)


def _make_step_callback(
    status: Callable[[str], None], events: RunEvents, figures: RunFigures
) -> Callable[[dict[str, Any]], None]:
    """The callback for each new line of the metrics file."""
    progress = Progress()

    def on_step(metrics: dict[str, Any]) -> None:
        _log_events(events)
        status(progress.format_step(metrics))
        figures.add_step(metrics)

    return on_step
