"""One rank of a short training in fp32: losses and gradient norms of every step. Rank 0 prints JSON.

python -m tests.training.numerics_probe RANK WORLD_SIZE FOLDER STAGE        (DeepSpeed wants processes of its own)
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig

from instruct_ray.config import TrainConfig
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.packing import empty_pack
from instruct_ray.data.plan import Plan
from instruct_ray.training.modeling.model import load_model, packed_implementation
from instruct_ray.training.modeling.proof import PackingProof
from instruct_ray.training.schedule import learning_rate_at
from instruct_ray.training.step import make_compute, train_step
from instruct_ray.training.zero import ZeroEngine
from tests.training.processes import together
from tests.training.tiny_models import CPU

PACKS_PER_STEP = 4
NUM_EPOCHS = 3


def main(rank: int, world_size: int, folder: Path, stage: str) -> None:
    """The steps of the plan, as the loop does them."""
    with together(rank, world_size, folder):
        train = TrainConfig.model_validate({"zero_stage": int(stage), "precision": "fp32", "learning_rate": 3e-3})
        dataset, config = PackedDataset.open(folder / "packs"), AutoConfig.from_pretrained(folder / "base")
        plan = Plan(dataset.row_groups, PACKS_PER_STEP, NUM_EPOCHS, seed=0)
        implementation = packed_implementation(config, CPU)
        proof = PackingProof(path="packed", reason="", implementation=implementation, versions={})
        engine = ZeroEngine(
            train,
            plan.packs_per_rank(world_size),
            world_size,
            lambda: load_model(folder / "base", None, train, torch.float32, 0, implementation),
        )
        compute = make_compute(config, proof, torch.float32)
        losses, norms = [], []
        for step in range(plan.num_steps):
            share = plan.share(step, rank, world_size)
            packs = [empty_pack() if index is None else dataset.take([index])[0] for index in share]
            num_trained = int(dataset.num_trained[plan.packs(step)].sum())
            learning_rate = learning_rate_at(step, plan.num_steps, train)
            done = train_step(engine, compute, packs, num_trained, learning_rate, wants_stop=False, wants_lookout=False)
            losses.append(done.loss)
            norms.append(done.grad_norm)
        print(json.dumps({"losses": losses, "norms": norms}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
