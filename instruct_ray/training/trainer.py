"""Packs -> model: TorchTrainer around the training loop, and the exported folder around its weights."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from instruct_ray import base, run
from instruct_ray.base import Base
from instruct_ray.config import Config
from instruct_ray.data import prepare
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.plan import Plan, make_plan
from instruct_ray.data.rendering.contract import Contract
from instruct_ray.data.rendering.templates import make_renderer
from instruct_ray.errors import InputError
from instruct_ray.tracking import TrackedRun
from instruct_ray.training.loop import TrainJob, train_loop_per_worker
from instruct_ray.training.model import check_trainable, packing_obstacle
from instruct_ray.training.proof import PackingProof
from instruct_ray.worker_env import compute_env

# What decides the weights.
SECTIONS = ("run", "data", "model", "train")
# In a run's folder: whether packs are computed as each example alone would be, and the way taken.
PACKING_PROOF = "packing_proof.json"

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
    model = base.resolve(config)
    obstacle = packing_obstacle(check_trainable(model.folder), config.data.max_tokens)
    _check_contract(config, dataset, model)
    weights = folder.path / ".weights"
    plan = plan_of(config, dataset)
    job = TrainJob(
        base=model.folder,
        packs=dataset.path,
        obstacle=obstacle,
        proof=folder.path / PACKING_PROOF,
        metrics=folder.metrics,
        weights=weights,
        plan=plan,
        lora=config.model.lora,
        train=config.train,
    )
    run.pin(config, *SECTIONS)
    start_ray()
    # Once: with the first step, or at the end if it never comes.
    say_way = cache(lambda: _say_if_padded(job.proof))
    tracked = _tracked_run(config, folder, status, say_way)
    outcome = "FAILED"
    try:
        _fit(config, folder, job)
        outcome = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        outcome = "KILLED"
        raise
    finally:
        tracked.finish(outcome)
        say_way()
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


def _say_if_padded(record: Path) -> None:
    """Warn that a run is slower than it could be, and why; in the log, where no live line overwrites it."""
    if not record.is_file():
        return
    proof = PackingProof.model_validate_json(record.read_text())
    if not proof.is_packed:
        logger.warning("training padded instead of packed: %s (%s)", proof.reason, record)


def _tracked_run(
    config: Config, folder: run.RunFolder, status: Callable[[str], None], say_way: Callable[[], None]
) -> TrackedRun:
    """The MLflow run; a continued training continues its run."""

    def on_step(record: dict[str, Any]) -> None:
        say_way()
        tokens = record["num_tokens"] / record["seconds"]
        status(f"step {record['step']}/{record['num_steps']}  loss {record['loss']:.3f}  {tokens:,.0f} tokens/s")

    record = folder.path / "mlflow.json"
    run_id = json.loads(record.read_text())["run_id"] if record.is_file() else None
    tracked = TrackedRun(config, run_id, folder.metrics, on_step)
    run.write_json(record, {"run_id": tracked.id})
    tracked.start()
    return tracked


def _fit(config: Config, folder: run.RunFolder, job: TrainJob) -> None:
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
        trainer.fit()
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
