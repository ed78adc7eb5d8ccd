"""One rank that trains a tiny model at a stage with each kind of offload, and continues from checkpoints. Prints JSON.

python -m tests.training.distributed.offload_probe RANK WORLD_SIZE FOLDER STAGE PRECISION      (DeepSpeed wants its own process)

The other ranks run beside it; FOLDER holds the base and takes the checkpoints.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from instruct_ray.config.train import OffloadConfig, TrainConfig
from instruct_ray.training.capacity.model_sizer import DTYPES
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from tests.training.processes import together

HALF, NUM_STEPS, NUM_MICRO = 3, 6, 2
TAG = "half"
KINDS = {
    "none": OffloadConfig(),
    "optimizer": OffloadConfig(optimizer=True),
    "parameters": OffloadConfig(parameters=True),
    "both": OffloadConfig(optimizer=True, parameters=True),
}


def main(rank: int, world_size: int, folder: Path, stage: int, precision: str) -> None:
    """Each kind that the stage has: from the start, from its own checkpoint, and from that of a run without."""
    with together(rank, world_size, folder):
        found = {}
        for kind in ("none", "optimizer") if stage < 3 else KINDS:
            values = {"zero_stage": stage, "precision": precision, "offload": KINDS[kind].model_dump()}
            train = TrainConfig.model_validate(values)
            whole = _train(train, rank, world_size, folder, save=kind)
            again = _train(train, rank, world_size, folder, load=kind)
            switched = _train(train, rank, world_size, folder, load="none")
            found[kind] = {"whole": whole, "again": again, "switched": switched}
        print(json.dumps(found))


def _train(train: TrainConfig, rank: int, world_size: int, folder: Path, save: str = "", load: str = "") -> list[float]:
    """A new engine, from the start or from a checkpoint."""
    dtype = DTYPES[train.precision]
    make = lambda: LlamaForCausalLM.from_pretrained(folder / "base", dtype=dtype).train()  # noqa: E731
    engine = DeepSpeedEngine(train, NUM_MICRO, world_size, make)
    if load:
        engine.load(folder / load, TAG)
    losses = losses_of(engine, rank, world_size, HALF if load else 0, folder / save if save else None)
    engine.engine.destroy()
    return losses


def losses_of(engine: DeepSpeedEngine, rank: int, world_size: int, first: int, save: Path | None = None) -> list[float]:
    """Losses and gradient norms of the steps from `first` on, on rows that depend on step and rank alone; saves a
    checkpoint in the middle."""
    losses = []
    for step in range(first, NUM_STEPS):
        for micro in range(NUM_MICRO):
            generator = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
            ids_1T = torch.randint(0, 64, (1, 24), generator=generator)
            logits_TV = engine.model(input_ids=ids_1T, use_cache=False).logits[0].float()
            loss = F.cross_entropy(logits_TV[:-1], ids_1T[0, 1:]) / (NUM_MICRO * world_size)
            engine.backward(loss)
            engine.step(1e-2)
            losses.append(loss.item())
        losses.append(engine.grad_norm)
        if save and step + 1 == HALF:
            engine.save(save, TAG)
            dist.barrier()
    return losses


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
