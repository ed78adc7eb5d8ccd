"""worker, all ranks: the train loop that Ray Train runs. Restores the run, trains to its end and exports the model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.stream import stream_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.errors import InputError, one_line
from instruct_ray.training.checkpoint.checkpointer import Checkpointer, ResumePoint
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.exporter import Exporter
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.output_head import find_unchunkable_head
from instruct_ray.training.model.packing_check import PackingCheckError, resolve_packing_mode
from instruct_ray.training.validation.loss import ValidationLoss
from instruct_ray.training.validation.rows import pack_rows
from instruct_ray.training.validation.task import EvalFn
from instruct_ray.training.validation.validator import Validator
from instruct_ray.training.worker.compute_threads import set_compute_threads
from instruct_ray.training.worker.gpu_meter import GpuMeter
from instruct_ray.training.worker.loss_spikes import LossSpikeDetector, read_recent_losses
from instruct_ray.training.worker.outcome import Action, Ending, TrainOutcome
from instruct_ray.training.worker.preemption import PreemptionMonitor
from instruct_ray.training.worker.run_folder_monitor import RunFolderMonitor
from instruct_ray.training.worker.run_log import RunLog
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import PackLossFn, make_loss_fn
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
        spec.check_lock()
        trainer = _build_trainer(spec, read_packs, eval_fn)
    except (InputError, PackingCheckError) as error:
        # Raised on all ranks alike.
        return TrainOutcome(Ending.FAILED, str(error))
    try:
        outcome = _train_and_export(trainer, _system_metrics_file(spec))
    finally:
        unwritten = trainer.log.close()
    return replace(outcome, unwritten=unwritten)


def _train_and_export(trainer: WorkerTrainer, system_metrics_file: Path | None) -> TrainOutcome:
    with trainer.folder_monitor, record_system_metrics(system_metrics_file, trainer.spec.lock):
        decision = trainer.run()
    if decision.action is Action.INTERRUPT:
        return TrainOutcome(Ending.INTERRUPTED)
    if decision.action is Action.FAIL:
        return TrainOutcome(Ending.FAILED, decision.reason)
    trainer.spec.check_lock()
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
        PackingCheckError: the packing check could not be run on this machine; raised on all ranks alike.
    """
    set_compute_threads(spec.train)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    hf_config, dtype = load_hf_config(spec.base_dir), DTYPES[spec.train.precision]
    contract_digest = PackedDataset.open(spec.packs_dir).manifest["contract_digest"]
    checkpointer = Checkpointer(
        spec.checkpoint_dir, contract_digest, spec.train.num_checkpoints, rank, world_size, device, spec.lock
    )
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
        lambda: load_model(
            spec.base_dir,
            spec.lora,
            spec.train,
            dtype,
            seed,
            attn_implementation,
            spec.adapter_dir,
            spec.token_ids,
        ),
        is_universal=resume_point.is_universal,
        decays_all=resume_point.decays_all,
    )
    checkpointer.restore(engine, resume_point)
    meter = GpuMeter(engine.model, device, spec.train.precision, world_size)
    log = RunLog(spec, meter, resume_point, is_writer=rank == 0)
    unchunkable_head = find_unchunkable_head(hf_config, engine.module)
    log.log_start(check, resume_point, unchunkable_head)
    in_chunks = unchunkable_head is None
    validation_loss_fn = make_loss_fn(hf_config, check, dtype, in_chunks=in_chunks, with_aux_loss=False)
    validator = _build_validator(spec, eval_fn, validation_loss_fn, log, device)
    is_finished = validator is not None and _resume_validation(validator, spec, engine, resume_point)
    return WorkerTrainer(
        spec=spec,
        packs=packs,
        first_step=spec.plan.num_steps if is_finished else resume_point.step,
        engine=engine,
        loss_fn=make_loss_fn(hf_config, check, dtype, in_chunks=in_chunks),
        checkpointer=checkpointer,
        exporter=_build_exporter(spec, hf_config, attn_implementation, rank),
        validator=validator,
        spike_detector=_build_spike_detector(spec, resume_point.step, log, rank, device),
        log=log,
        preemption=PreemptionMonitor(rank),
        folder_monitor=RunFolderMonitor(spec.stop_file, spec.lock, rank),
        rank=rank,
    )


def _build_validator(
    spec: WorkerSpec, eval_fn: EvalFn | None, loss_fn: PackLossFn, log: RunLog, device: torch.device
) -> Validator | None:
    """Build the validator; None if the run's checkpoints are not validated."""
    if spec.validation is None:
        return None
    context, validation = ray.train.get_context(), spec.validation
    renderer = Renderer(load_tokenizer(validation.base_dir), PromptContract.load(validation.contract_file))
    pack_tokens = int(PackedDataset.open(spec.packs_dir).manifest["pack_tokens"])
    packs = pack_rows(validation.rows_file, validation.validation.num_rows, renderer, pack_tokens)
    loss = ValidationLoss(packs, loss_fn, context.get_world_rank(), context.get_world_size())
    return Validator(validation, loss, eval_fn, log.log_event, context.get_world_rank(), device)


def _resume_validation(
    validator: Validator, spec: WorkerSpec, engine: DeepSpeedEngine, resume_point: ResumePoint
) -> bool:
    """Continue the validation of an earlier attempt; returns whether training stops early at the resume point."""
    step = resume_point.step
    is_due, is_end = spec.is_checkpoint_due(step), step == spec.plan.num_steps
    return validator.resume(engine, resume_point.checkpoint, step, is_due=is_due, is_end=is_end)


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


def _build_spike_detector(
    spec: WorkerSpec, num_steps: int, log: RunLog, rank: int, device: torch.device
) -> LossSpikeDetector | None:
    """Build the detector from the losses before the resume point; None if the run doesn't look for loss spikes."""
    config = spec.train.loss_spike
    if config is None:
        return None
    # Rank 0 reads them for all ranks, so that all decide the same.
    losses: list[tuple[int, float]] = []
    if rank == 0:
        try:
            losses = read_recent_losses(spec.metrics_file, num_steps, config)
        except OSError as error:
            log.log_event(f"loss spikes are looked for without the steps before: {one_line(error)}")
    return LossSpikeDetector(config, broadcast_object(losses, device))
