"""Packs -> model: TorchTrainer around the training loop, and the model folder around its weights."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from instruct_ray import base, lease, run
from instruct_ray.config import Config, TrainConfig
from instruct_ray.data import prepare
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.tracking.tail import followed
from instruct_ray.tracking.tracked_run import TrackedRun, complete
from instruct_ray.training.checkpointing.checkpoints import prune, tidy
from instruct_ray.training.exporting.model_folder import assemble_model
from instruct_ray.training.faults.failures import explained
from instruct_ray.training.faults.lost_workers import LostWorkers
from instruct_ray.training.faults.pace import paced
from instruct_ray.training.faults.waiting import watched
from instruct_ray.training.job import TrainJob, job_of, plan_of
from instruct_ray.training.loop import STOPPED, train_loop_per_worker
from instruct_ray.training.modeling.model import check_trainable
from instruct_ray.training.notices import Notices
from instruct_ray.training.preflight.checks import check, refuse
from instruct_ray.training.preflight.placement import bundle_of
from instruct_ray.training.preflight.report import Finding, Job
from instruct_ray.training.preflight.shaping import Shaper
from instruct_ray.training.stopping import in_thread, stoppable
from instruct_ray.training.watching.progress import Progress
from instruct_ray.training.watching.validation import Score
from instruct_ray.worker_env import compute_env

# What every worker runs, with the job and how to score a model.
Loop = Callable[[dict[str, Any]], str]
# What decides the weights.
SECTIONS = ("run", "data", "model", "train")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """A tuned model on disk."""

    folder: Path
    already_done: bool


def tune(
    config: Config, status: Callable[[str], None], start_ray: Callable[[], None], score: Score | None = None
) -> Tuned:
    """Train to the end of the plan, from the newest checkpoint if there is one, and export the model.

    `start_ray` is called once the input is known to be good; `score` says how good a model is, for `train.validation`.

    Raises:
        InputError: the packs are not prepared, the config changed since the run began, or the cluster can't hold it.
        RuntimeError: training failed more than `train.max_failures` times.
    """
    dataset = prepare.find(config)
    folder = run.RunFolder.of(config)
    if (folder.model / run.MODEL_RECORD).is_file():
        run.check_pinned(config, *SECTIONS)
        complete(config, logger.warning)
        return Tuned(folder.model, already_done=True)
    with lease.held(folder.path):
        return _tune(config, status, start_ray, dataset, score)


def _tune(
    config: Config,
    status: Callable[[str], None],
    start_ray: Callable[[], None],
    dataset: PackedDataset,
    score: Score | None,
) -> Tuned:
    folder, train = run.RunFolder.of(config), config.train
    model = base.resolve(config)
    job = job_of(config, dataset, model, folder, plan_of(config, dataset))
    run.check_pinned(config, *SECTIONS)
    base.check_remembered(config, model)
    problems = tidy(folder.train)
    shaper = Shaper.of(check_trainable(model.folder), job.obstacle, dataset, train)
    start_ray()
    status("looking at the cluster")
    _say_all(check(Job(folder.path, config.model.lora, train, shaper)))
    # Only now: what is refused may be changed, and asked again.
    run.pin(config, *SECTIONS)
    base.remember(config, model)
    for problem in problems:
        logger.warning("set aside: %s; continuing from the newest checkpoint that is whole", problem)
    workers = f"{train.min_workers} to {train.max_workers}" if train.is_elastic else train.num_workers
    status(f"starting {workers} worker(s), ZeRO-{train.zero_stage}")
    run_id = _train(config, folder, job, status, score)
    assemble_model(folder, job, model, run_id)
    return Tuned(folder.model, already_done=False)


def _train(
    config: Config, folder: run.RunFolder, job: TrainJob, status: Callable[[str], None], score: Score | None
) -> str | None:
    """To the end, followed by MLflow and stoppable by signals; returns the MLflow run, if there is one."""
    tracked = TrackedRun(config, logger.warning)
    tracked.start()
    notices = Notices(job.notices)
    outcome = "FAILED"
    try:
        with (
            stoppable(job.stop, status) as request,
            watched(job.metrics, config.train, status),
            followed(job.metrics, _on_step(status, notices)),
        ):
            ending = in_thread(lambda: fit(config.train, folder, job, score))
            if ending == STOPPED:
                request.end()
        if ending:
            raise RuntimeError(f"training stopped: {ending}")
        prune(folder.train)
        outcome = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        outcome = "KILLED"
        raise
    finally:
        tracked.finish(outcome)
        _say(notices)
    return tracked.id


def _say_all(findings: Sequence[Finding]) -> None:
    """Refuse what can't work, and log what is worth a word."""
    refuse(findings)
    for finding in findings:
        if finding.verdict == "note":
            logger.warning("%s: %s", finding.subject, finding.said)


def _say(notices: Notices) -> None:
    """In the log, where no live line overwrites it."""
    for notice in notices.new():
        logger.warning("%s", notice)


def _on_step(status: Callable[[str], None], notices: Notices) -> Callable[[dict[str, Any]], None]:
    """What is done with each new line of the metrics."""
    progress = Progress()

    def on_step(record: dict[str, Any]) -> None:
        _say(notices)
        status(progress.line(record))

    return on_step


def fit(
    train: TrainConfig,
    folder: run.RunFolder,
    job: TrainJob,
    score: Score | None = None,
    loop: Loop = train_loop_per_worker,
) -> str:
    """Train; returns why the workers stopped before the end, or nothing.

    Raises:
        RuntimeError: training failed more than `train.max_failures` times.
    """
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job.model_dump(mode="json"), "score": score},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=bundle_of(train),
        ),
        run_config=ray.train.RunConfig(
            # The same name and storage continue: Ray Train finds its own state there.
            name=folder.train.name,
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.num_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[LostWorkers(job.notices)],
            worker_runtime_env=compute_env(use_gpu=train.use_gpu),
        ),
    )
    try:
        with paced(train):
            return str(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise RuntimeError(f"training failed: {explained(error)}") from error
