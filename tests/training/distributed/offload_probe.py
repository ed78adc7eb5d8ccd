"""One rank that trains a tiny model with each kind of offloading, and resumes from checkpoints. Prints JSON.

python -m tests.training.distributed.offload_probe RANK WORLD_SIZE FOLDER STAGE PRECISION

FOLDER holds the base model; checkpoints are written there. DeepSpeed needs a process of its own.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from instruct_ray.config.train import OffloadConfig, TrainConfig
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.load import DTYPES
from tests.training.processes import rank_process

NUM_STEPS, NUM_MICRO_BATCHES = 6, 2
# The checkpoint is made after this step.
CHECKPOINT_STEP = 3
TAG = "checkpoint"
KINDS = {
    "none": OffloadConfig(),
    "optimizer": OffloadConfig(optimizer=True),
    "parameters": OffloadConfig(parameters=True),
    "both": OffloadConfig(optimizer=True, parameters=True),
}


def main(rank: int, world_size: int, folder: Path, stage: int, precision: str) -> None:
    """Train with each kind that the stage supports: from the start, and resumed from two checkpoints."""
    with rank_process(rank, world_size, folder):
        losses_by_kind = {}
        for kind in ("none", "optimizer") if stage < 3 else KINDS:
            values = {"zero_stage": stage, "precision": precision, "offload": KINDS[kind].model_dump()}
            # With weight decay, norms are a parameter group of their own.
            train = TrainConfig.model_validate(values | {"weight_decay": 0.1})
            uninterrupted = train_new_engine(train, rank, world_size, folder, save_to=kind)
            resumed = train_new_engine(train, rank, world_size, folder, load_from=kind)
            switched = train_new_engine(train, rank, world_size, folder, load_from="none")
            losses_by_kind[kind] = {"uninterrupted": uninterrupted, "resumed": resumed, "switched": switched}
        print(json.dumps(losses_by_kind))


def train_new_engine(
    train: TrainConfig,
    rank: int,
    world_size: int,
    folder: Path,
    save_to: str | None = None,
    load_from: str | None = None,
) -> list[float]:
    """Train a new engine, from the start or from a checkpoint in `folder`."""
    dtype = DTYPES[train.precision]
    load_base = lambda: LlamaForCausalLM.from_pretrained(folder / "base", dtype=dtype).train()  # noqa: E731
    engine = DeepSpeedEngine(train, NUM_MICRO_BATCHES, world_size, load_base)
    if load_from:
        engine.load(folder / load_from, TAG)
    first = CHECKPOINT_STEP if load_from else 0
    losses = train_steps(engine, rank, world_size, first, folder / save_to if save_to else None)
    engine._engine.destroy()
    return losses


def train_steps(
    engine: DeepSpeedEngine, rank: int, world_size: int, first: int, checkpoint: Path | None = None
) -> list[float]:
    """Train from step `first` to the end, on random rows that depend only on step and rank.

    Returns:
        For each step the losses of its micro-batches, then its gradient norm.
    """
    values = []
    for step in range(first, NUM_STEPS):
        for micro in range(NUM_MICRO_BATCHES):
            generator = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
            ids_1T = torch.randint(0, 64, (1, 24), generator=generator)
            logits_TV = engine.model(input_ids=ids_1T, use_cache=False).logits[0].float()
            loss = F.cross_entropy(logits_TV[:-1], ids_1T[0, 1:]) / (NUM_MICRO_BATCHES * world_size)
            engine.backward(loss)
            engine.step(1e-2)
            values.append(loss.item())
        values.append(engine.grad_norm)
        if checkpoint and step + 1 == CHECKPOINT_STEP:
            engine.save(checkpoint, TAG)
            dist.barrier()
    return values


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
