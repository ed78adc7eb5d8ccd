"""Packs -> model: TorchTrainer around the training loop, and the exported folder around its weights."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from instruct_ray import base, lease, run
from instruct_ray.base import Base
from instruct_ray.config import Config
from instruct_ray.data import prepare
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.plan import Plan, make_plan
from instruct_ray.data.rendering.contract import Contract
from instruct_ray.data.rendering.templates import make_renderer
from instruct_ray.errors import InputError
from instruct_ray.tracking import TrackedRun
from instruct_ray.training.checkpoints import prune, tidy
from instruct_ray.training.loop import STOPPED, TrainJob, train_loop_per_worker
from instruct_ray.training.model import check_lora_targets, check_trainable, packing_obstacle
from instruct_ray.training.notices import Notices
from instruct_ray.training.stopping import in_thread, stoppable
from instruct_ray.worker_env import compute_env

# What decides the weights.
SECTIONS = ("run", "data", "model", "train")
# In a run's folder: whether packs are computed as each example alone would be, and the way taken.
PACKING_PROOF = "packing_proof.json"
# What its workers decided by themselves.
NOTICES = "notices.jsonl"
STOP = ".stop"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """A tuned model on disk."""

    folder: Path
    already_done: bool


def plan_of(config: Config, dataset: PackedDataset) -> Plan:
    """The plan of a run over its packs."""
    train = config.train
    return make_plan(dataset.row_groups, dataset.num_train, train.examples_per_step, train.epochs, config.run.seed)


def tune(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Tuned:
    """Train to the end of the plan, from the newest checkpoint if there is one, and export the model.

    `start_ray` is called once the input is known to be good.

    Raises:
        InputError: the packs are not prepared, or the config changed since the run began.
        RuntimeError: training failed more than `train.max_failures` times.
    """
    dataset = prepare.find(config)
    folder = run.RunFolder.of(config)
    if (folder.model / run.MODEL_RECORD).is_file():
        run.check_pinned(config, *SECTIONS)
        return Tuned(folder.model, already_done=True)
    with lease.held(folder.path):
        return _tune(config, status, start_ray, dataset)


def _tune(
    config: Config, status: Callable[[str], None], start_ray: Callable[[], None], dataset: PackedDataset
) -> Tuned:
    folder = run.RunFolder.of(config)
    model = base.resolve(config)
    architecture = check_trainable(model.folder)
    obstacle = packing_obstacle(architecture, config.data.max_tokens)
    if config.model.lora is not None:
        check_lora_targets(architecture, config.model.lora.targets or ())
    _check_contract(config, dataset, model)
    weights = folder.path / ".weights"
    plan = plan_of(config, dataset)
    job = TrainJob(
        base=model.folder,
        packs=dataset.path,
        obstacle=obstacle,
        proof=folder.path / PACKING_PROOF,
        metrics=folder.metrics,
        notices=folder.path / NOTICES,
        checkpoints=folder.train,
        stop=folder.path / STOP,
        weights=weights,
        plan=plan,
        lora=config.model.lora,
        train=config.train,
    )
    run.pin(config, *SECTIONS)
    start_ray()
    if problem := tidy(folder.train):
        logger.warning("set aside: %s; continuing from the newest checkpoint that is whole", problem)
    notices = Notices(job.notices)
    tracked = _tracked_run(config, folder, status, notices)
    outcome = "FAILED"
    try:
        with stoppable(job.stop, status) as request:
            ending = in_thread(lambda: _fit(config, folder, job))
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
    _assemble(config, folder, weights, model, tracked.id, plan)
    return Tuned(folder.model, already_done=False)


def _check_contract(config: Config, dataset: PackedDataset, model: Base) -> None:
    """The base must render as it did when the packs were made."""
    found = make_renderer(model.folder, config.data.system_prompt).contract.digest
    expected = dataset.manifest["contract_digest"]
    if found != expected:
        raise InputError(
            f"{dataset.path} follows contract {expected[:12]}, {model.name} now {found[:12]}; prepare again"
        )


def _say(notices: Notices) -> None:
    """In the log, where no live line overwrites it."""
    for notice in notices.new():
        logger.warning("%s", notice)


def _tracked_run(config: Config, folder: run.RunFolder, status: Callable[[str], None], notices: Notices) -> TrackedRun:
    """The MLflow run; a continued training continues its run."""

    def on_step(record: dict[str, Any]) -> None:
        _say(notices)
        tokens = record["num_tokens"] / record["seconds"]
        loss = "none" if record["loss"] is None else f"{record['loss']:.3f}"
        status(f"step {record['step']}/{record['num_steps']}  loss {loss}  {tokens:,.0f} tokens/s")

    record = folder.path / "mlflow.json"
    run_id = json.loads(record.read_text())["run_id"] if record.is_file() else None
    tracked = TrackedRun(config, run_id, folder.metrics, on_step)
    run.write_json(record, {"run_id": tracked.id})
    tracked.start()
    return tracked


def _fit(config: Config, folder: run.RunFolder, job: TrainJob) -> str:
    """Train; returns why the workers stopped before the end, or nothing."""
    train = config.train
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=job.model_dump(mode="json"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if train.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            # The same name and storage continue: Ray Train finds its own state there.
            name=folder.train.name,
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.num_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env=compute_env(use_gpu=train.use_gpu),
        ),
    )
    try:
        return str(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise RuntimeError(f"training failed: {error}") from error


def _assemble(config: Config, folder: run.RunFolder, weights: Path, model: Base, run_id: str, plan: Plan) -> None:
    """Weights, tokenizer, contract and a record of where they come from, in place at once."""
    with run.complete_folder(folder.model) as unfinished:
        shutil.copytree(weights, unfinished, dirs_exist_ok=True)
        for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json"):
            for file in model.folder.glob(pattern):
                shutil.copy(file, unfinished)
        contract = Contract.load(folder.contract)
        contract.save(unfinished / "contract.json")
        # For whoever loads the model without the contract; a base may come without a template.
        (unfinished / "chat_template.jinja").write_text(contract.standalone_template)
        record = {
            "base": model.name,
            "base_folder": str(model.folder),
            "base_digest": model.digest,
            "contract_digest": contract.digest,
            "packs_digest": prepare.find(config).manifest["digest"],
            "mlflow_run_id": run_id,
            "num_steps": plan.num_steps,
            "lora": config.model.lora is not None,
        }
        run.write_json(unfinished / run.MODEL_RECORD, record)
    shutil.rmtree(weights)
