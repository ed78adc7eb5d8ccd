"""worker, all ranks: the train loop that Ray Train runs. Restores the run, trains to its end and exports the model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.stream import stream_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.errors import InputError
from instruct_ray.training.checkpoint.checkpointer import Checkpointer
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.exporter import Exporter
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.packing_check import resolve_packing_mode
from instruct_ray.training.validation.task import EvalFn
from instruct_ray.training.validation.validator import Validator
from instruct_ray.training.worker.loss_spikes import LossSpikeDetector, read_recent_losses
from instruct_ray.training.worker.mfu import MfuMeter
from instruct_ray.training.worker.outcome import Action, Ending, TrainOutcome
from instruct_ray.training.worker.preemption import PreemptionMonitor
from instruct_ray.training.worker.run_log import RunLog
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import make_loss_fn
from instruct_ray.training.worker.system_metrics import record_system_metrics
from instruct_ray.training.worker.trainer import WorkerTrainer

# (packs folder, plan, first step, rank, number of ranks) -> the rank's packs of each step.
PackReader = Callable[[Path, BatchPlan, int, int, int], Iterator[list[Pack]]]


def train_loop_per_worker(config: dict[str, Any]) -> TrainOutcome:
    """Train on every worker of Ray Train; `config` holds `worker_spec` and `eval_fn`."""
    return run_worker(WorkerSpec.model_validate(config["worker_spec"]), stream_packs, config["eval_fn"])


def run_worker(spec: WorkerSpec, read_packs: PackReader, eval_fn: EvalFn | None) -> TrainOutcome:
    """Train this rank's share of every step of the plan, and export the model.

    A problem that would recur after a restart is returned as a failed outcome, because Ray Train restarts the workers
    after an exception.
    """
    try:
        trainer = _build_trainer(spec, read_packs, eval_fn)
    except InputError as error:
        # Raised on all ranks alike.
        return TrainOutcome(Ending.FAILED, str(error))
    with record_system_metrics(_system_metrics_file(spec)):
        decision = trainer.run()
    if decision.action is Action.INTERRUPT:
        return TrainOutcome(Ending.INTERRUPTED)
    if decision.action is Action.FAIL:
        return TrainOutcome(Ending.FAILED, decision.reason)
    if trainer.validator:
        trainer.validator.finish()
    exported = trainer.exporter.export(trainer.engine)
    return TrainOutcome(Ending.FAILED, exported.problem) if exported.problem else TrainOutcome(Ending.FINISHED)


def _system_metrics_file(spec: WorkerSpec) -> Path | None:
    """Return where this worker records its node; None for all but one worker of each node."""
    context = ray.train.get_context()
    name = f"system-{context.get_node_rank()}.jsonl"
    return spec.metrics_file.with_name(name) if context.get_local_rank() == 0 else None


def _build_trainer(spec: WorkerSpec, read_packs: PackReader, eval_fn: EvalFn | None) -> WorkerTrainer:
    """Build the trainer, restored from the newest usable checkpoint if there is one.

    Raises:
        InputError: no checkpoint is usable, or they belong to other packs; raised on all ranks alike.
    """
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    hf_config, dtype = load_hf_config(spec.base_dir), DTYPES[spec.train.precision]
    contract_digest = PackedDataset.open(spec.packs_dir).manifest["contract_digest"]
    checkpointer = Checkpointer(spec.checkpoint_dir, contract_digest, rank, world_size, device)
    resume_point = checkpointer.find_resume_point(spec.train.zero_stage)
    # Started early: the first packs are read while the model is loaded.
    packs = read_packs(spec.packs_dir, spec.plan, resume_point.step, rank, world_size)
    # Before the engine takes memory: the check loads a few layers of the base model, too.
    check = resolve_packing_mode(
        spec.base_dir, hf_config, spec.packs_dir, spec.packing_incompatibility, spec.packing_check_file, device
    )
    attn_implementation, seed = check.attn_implementation, spec.plan.seed
    engine = DeepSpeedEngine(
        spec.train,
        spec.plan.packs_per_rank(world_size),
        world_size,
        lambda: load_model(spec.base_dir, spec.lora, spec.train, dtype, seed, attn_implementation, spec.adapter_dir),
        is_universal=resume_point.is_universal,
    )
    checkpointer.restore(engine, resume_point)
    log = RunLog(spec, MfuMeter(engine.model, device, spec.train.precision, world_size), is_writer=rank == 0)
    log.log_start(check, resume_point)
    validator = Validator(spec.validation, eval_fn, rank, device) if spec.validation and eval_fn else None
    if validator:
        validator.resume(spec.checkpoint_dir, resume_point.step, spec.is_checkpoint_due)
    return WorkerTrainer(
        spec=spec,
        packs=packs,
        first_step=resume_point.step,
        engine=engine,
        loss_fn=make_loss_fn(hf_config, check, dtype),
        checkpointer=checkpointer,
        exporter=_build_exporter(spec, hf_config, attn_implementation, rank),
        validator=validator,
        spike_detector=_build_spike_detector(spec, rank, device),
        log=log,
        preemption=PreemptionMonitor(rank),
        rank=rank,
    )


def _build_exporter(spec: WorkerSpec, hf_config: Any, attn_implementation: str, rank: int) -> Exporter:
    return Exporter(
        base_dir=spec.base_dir,
        hf_config=hf_config,
        packs_dir=spec.packs_dir,
        weights_dir=spec.weights_dir,
        check_file=spec.export_check_file,
        format=export_format(spec.lora),
        attn_implementation=attn_implementation,
        is_quantized=spec.lora is not None and spec.lora.quantize is not None,
        rank=rank,
    )


def _build_spike_detector(spec: WorkerSpec, rank: int, device: torch.device) -> LossSpikeDetector | None:
    """Build the detector from the losses before the resume point; None if the run doesn't look for loss spikes."""
    config = spec.train.loss_spike
    if config is None:
        return None
    # Rank 0 reads them for all ranks, so that all decide the same.
    losses = read_recent_losses(spec.metrics_file, config) if rank == 0 else []
    return LossSpikeDetector(config, broadcast_object(losses, device))
