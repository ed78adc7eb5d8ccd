"""What every training worker runs: restore, then step after step to the end of the plan, then export."""

import json
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig

from instruct_ray.config import LoraConfig, TrainConfig
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.feed import stream
from instruct_ray.data.plan import Plan
from instruct_ray.training.export import save_weights
from instruct_ray.training.keeper import Keeper, Start
from instruct_ray.training.model import load_model
from instruct_ray.training.notices import note
from instruct_ray.training.proof import PackingProof, agree
from instruct_ray.training.schedule import learning_rate_at
from instruct_ray.training.step import Compute, Step, make_compute, train_step
from instruct_ray.training.zero import ZeroEngine

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


# What a run that was asked to stop returns.
STOPPED = "stopped"


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
    notices: Path
    """Where rank 0 says what it decided by itself."""
    checkpoints: Path
    stop: Path
    """Exists once the run is to stop behind its current step."""
    weights: Path
    """Where rank 0 leaves the trained weights."""
    plan: Plan
    lora: LoraConfig | None
    train: TrainConfig


def train_loop_per_worker(config: dict[str, Any]) -> str:
    """Train on this rank's share of every step of the plan, and export. Returns why it stopped before the end, or
    nothing: what another attempt would only repeat is no failure to Ray."""
    job = TrainJob.model_validate(config)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    dtype = DTYPES[job.train.precision]
    # Before there is an engine: the proof loads the base once more.
    proof = agree(job.base, job.packs, job.obstacle, job.proof, device)
    contract_digest = PackedDataset.open(job.packs).manifest["contract_digest"]
    keeper = Keeper(job.checkpoints, contract_digest, rank, world_size, device)
    start = keeper.find_start(job.train.zero_stage)
    engine = ZeroEngine(
        job.train,
        job.plan.packs_per_rank(world_size),
        world_size,
        lambda: load_model(job.base, job.lora, job.train, dtype, job.plan.seed, proof.implementation),
        is_universal=start.is_universal,
    )
    keeper.restore(engine, start)
    if rank == 0:
        _cut_metrics(job.metrics, start.step)
        _note(job, proof, start)
    compute = make_compute(AutoConfig.from_pretrained(job.base), proof, dtype)
    ending = _train(job, engine, compute, keeper, start.step, rank, world_size)
    if not ending:
        save_weights(engine, job.weights, is_writer=rank == 0)
    return ending


def _train(
    job: TrainJob, engine: ZeroEngine, compute: Compute, keeper: Keeper, start: int, rank: int, world_size: int
) -> str:
    """The steps from `start` on; returns why it stopped before the end, or nothing."""
    plan, train = job.plan, job.train
    num_trained_by_pack = PackedDataset.open(job.packs).num_trained
    packs = stream(job.packs, plan, start, rank, world_size)
    num_left_out = 0
    for step in range(start, plan.num_steps):
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, plan.num_steps, train)
        num_trained = int(num_trained_by_pack[plan.packs(step)].sum())
        # Dropout depends on the position in the run alone, so a continued run draws what an uninterrupted one does.
        torch.manual_seed(hash((plan.seed, step, rank)))
        mine = next(packs)
        waited = time.perf_counter() - began
        done = train_step(engine, compute, mine, num_trained, learning_rate, wants_stop=job.stop.exists())
        num_left_out = 0 if done.was_applied else num_left_out + 1
        if rank == 0:
            place = {"step": step + 1, "num_steps": plan.num_steps, "epoch": (step + 1) / plan.steps_per_epoch}
            seconds = time.perf_counter() - began
            times = {"lr": learning_rate, "seconds": seconds, "wait_seconds": waited}
            _append(job.metrics, place | done.record() | {"num_trained": num_trained} | times)
            if not done.was_applied:
                note(job.notices, _left_out(step + 1, done))
        if num_left_out == train.max_nonfinite_steps:
            return f"{num_left_out} steps in a row were left out, the last: {_left_out(step + 1, done)}"
        is_end = step + 1 == plan.num_steps
        if is_end or done.is_last or (step + 1) % train.checkpoint_every == 0:
            keeper.save(engine, step + 1, {"loss": done.loss})
        if done.is_last and not is_end:
            return STOPPED
    return ""


def _note(job: TrainJob, proof: PackingProof, start: Start) -> None:
    for problem in start.damaged:
        note(job.notices, f"checkpoint left out: {problem}; continuing from step {start.step}")
    if start.is_universal:
        note(job.notices, f"continuing from step {start.step} with another number of workers")
    if not proof.is_packed:
        note(job.notices, f"training padded instead of packed: {proof.reason} ({job.proof})")


def _left_out(step: int, done: Step) -> str:
    return (
        f"step {step} left out: loss {done.loss:.4g}, gradient norm {done.grad_norm:.4g}, rows "
        f"{', '.join(done.suspects)}; look at them, or lower train.learning_rate"
    )


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _cut_metrics(path: Path, num_steps: int) -> None:
    """Drop the lines of steps that a killed run did after its last checkpoint: they are done again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:num_steps]))
