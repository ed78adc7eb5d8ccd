"""What every training worker runs: restore, then step after step to the end of the plan, then export."""

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import AutoConfig

from instruct_ray.config import LoraConfig, TrainConfig
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.feed import stream
from instruct_ray.data.packing import Pack
from instruct_ray.data.plan import Plan
from instruct_ray.errors import InputError
from instruct_ray.training.attention import MaskLayout
from instruct_ray.training.export import save_weights
from instruct_ray.training.loss import pack_loss
from instruct_ray.training.model import aux_loss_coef, load_model
from instruct_ray.training.padded import num_computed_tokens, padded_loss
from instruct_ray.training.proof import PackingProof, agree
from instruct_ray.training.zero import ZeroEngine

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# (summed loss, tokens computed) of a pack.
Compute = Callable[[nn.Module, Pack, torch.device], tuple[Tensor, int]]


class TrainJob(BaseModel):
    """Everything a worker needs to know; travels as the train loop's config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path
    packs: Path
    obstacle: str | None
    """Why packs do not suit the base; None if they are to be proved."""
    proof: Path
    """Where rank 0 records which way is taken, and why."""
    metrics: Path
    weights: Path
    """Where rank 0 leaves the trained weights."""
    plan: Plan
    lora: LoraConfig | None
    train: TrainConfig


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train on this rank's share of every step of the plan."""
    job = TrainJob.model_validate(config)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    dataset, plan, train = PackedDataset.open(job.packs), job.plan, job.train
    dtype = DTYPES[train.precision]
    # Before there is an engine: the proof loads the base once more.
    proof = agree(job.base, job.packs, job.obstacle, job.proof, ray.train.torch.get_device())
    engine = ZeroEngine(
        train,
        plan.packs_per_rank(world_size),
        world_size,
        lambda: load_model(job.base, job.lora, dtype, plan.seed, proof.implementation),
    )
    compute = _compute(AutoConfig.from_pretrained(job.base), proof, dtype)
    contract_digest = dataset.manifest["contract_digest"]
    start = _restore(engine, contract_digest)
    if rank == 0:
        _cut_metrics(job.metrics, start)
    packs = stream(job.packs, plan, start, rank, world_size)
    for step in range(start, plan.num_steps):
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, plan.num_steps, train)
        num_trained = int(dataset.num_trained[plan.packs(step)].sum())
        # Dropout depends on the position in the run alone, so a continued run draws what an uninterrupted one does.
        torch.manual_seed(hash((plan.seed, step, rank)))
        mine = next(packs)
        waited = time.perf_counter() - began
        counts = _train_step(engine, compute, mine, num_trained, learning_rate)
        if not math.isfinite(counts["loss"]):
            raise FloatingPointError(f"loss is {counts['loss']} at step {step}; try a lower train.learning_rate")
        if rank == 0:
            done = {"step": step + 1, "num_steps": plan.num_steps, "epoch": (step + 1) / plan.steps_per_epoch}
            seconds = time.perf_counter() - began
            times = {"lr": learning_rate, "seconds": seconds, "wait_seconds": waited}
            _append(job.metrics, done | counts | {"num_trained": num_trained} | times)
        if (step + 1) % train.checkpoint_every == 0 or step + 1 == plan.num_steps:
            _checkpoint(engine, step + 1, contract_digest, counts)
    save_weights(engine, job.weights, is_writer=rank == 0)


def learning_rate_at(step: int, num_steps: int, train: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to zero; `step` counts from 0."""
    num_warmup = round(train.warmup_fraction * num_steps)
    if step < num_warmup:
        return train.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _compute(config: Any, proof: PackingProof, dtype: torch.dtype) -> Compute:
    """The way that the proof left open."""
    if proof.is_packed:
        layout = MaskLayout.of(config, proof.implementation, dtype)
        return lambda model, pack, device: (pack_loss(model, pack, device, layout), len(pack["input_ids"]))
    coef = aux_loss_coef(config)
    return lambda model, pack, device: (padded_loss(model, pack, device, coef), num_computed_tokens(pack))


def _train_step(
    engine: ZeroEngine, compute: Compute, packs: list[Pack], num_trained: int, learning_rate: float
) -> dict[str, float]:
    """One optimizer step. The loss is the sum over the step's trained tokens, on all ranks, over their number."""
    totals = torch.zeros(4, dtype=torch.float64)
    for pack in packs:
        loss_sum, num_computed = compute(engine.model, pack, engine.device)
        engine.backward(loss_sum / num_trained)
        engine.step(learning_rate)
        totals += torch.tensor(
            [loss_sum.item(), pack["num_tokens"], num_computed, len(pack["row_ids"])], dtype=torch.float64
        )
    totals = totals.to(engine.device)
    dist.all_reduce(totals)
    step_loss, num_tokens, num_computed, num_examples = totals.tolist()
    return {
        "loss": step_loss / num_trained,
        "grad_norm": engine.grad_norm,
        "num_tokens": int(num_tokens),
        "num_computed_tokens": int(num_computed),
        "examples": int(num_examples),
    }


def _restore(engine: ZeroEngine, contract_digest: str) -> int:
    """Continue from the newest checkpoint; returns the number of steps done.

    Raises:
        InputError: it was trained on other tokens than these packs hold.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        [tag] = [path.name for path in Path(folder).iterdir() if path.is_dir()]
        state = engine.load(Path(folder), tag)
    if state["contract_digest"] != contract_digest:
        raise InputError(
            f"{checkpoint.path} follows contract {state['contract_digest'][:12]}, the packs {contract_digest[:12]}; "
            "take another run.name"
        )
    return int(state["step"])


def _checkpoint(engine: ZeroEngine, step: int, contract_digest: str, metrics: dict[str, float]) -> None:
    """Every rank reports its own shards; Ray merges them into one folder on storage."""
    with tempfile.TemporaryDirectory() as folder:
        tag = f"step-{step:07d}"
        engine.save(Path(folder), tag, {"step": step, "contract_digest": contract_digest})
        ray.train.report(
            metrics | {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"checkpoint-{step:07d}",
        )


def _append(path: Path, record: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _cut_metrics(path: Path, num_steps: int) -> None:
    """Drop the lines of steps that a killed run did after its last checkpoint: they are done again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:num_steps]))
