"""One rank of torchrun's side of the Ray benchmark: the project's own step, without Ray.

torchrun --nproc-per-node=2 -m tests.bench.ray_sides CONFIG.yaml OUT.jsonl
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoConfig

from instruct_ray import base
from instruct_ray.config_file import load
from instruct_ray.data.packing import empty_pack
from instruct_ray.data.prepare import find
from instruct_ray.run import RunFolder
from instruct_ray.training.job import PACKING_PROOF, plan_of
from instruct_ray.training.modeling.model import DTYPES, load_model
from instruct_ray.training.modeling.proof import agree
from instruct_ray.training.schedule import learning_rate_at
from instruct_ray.training.step import make_compute, train_step
from instruct_ray.training.zero import ZeroEngine


def main() -> None:
    """Train to the end of the plan, a line a step."""
    config, out = load(Path(sys.argv[1])), Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset, folder = find(config), base.resolve(config).folder
    plan, train, dtype = plan_of(config, dataset), config.train, DTYPES[config.train.precision]
    device = torch.device("cpu")
    proof = agree(folder, dataset.path, None, RunFolder.of(config).path / PACKING_PROOF, device)
    engine = ZeroEngine(
        train,
        plan.packs_per_rank(world_size),
        world_size,
        lambda: load_model(folder, None, train, dtype, plan.seed, proof.implementation),
    )
    compute = make_compute(AutoConfig.from_pretrained(folder), proof, dtype)
    packs = dataset.take(range(dataset.num_packs))
    for step in range(plan.num_steps):
        began = time.perf_counter()
        num_trained = sum(packs[index]["num_trained"] for index in plan.packs(step))
        mine = [empty_pack() if index is None else packs[index] for index in plan.share(step, rank, world_size)]
        rate = learning_rate_at(step, plan.num_steps, train)
        done = train_step(engine, compute, mine, num_trained, rate, wants_stop=False, wants_lookout=False)
        if rank == 0:
            with out.open("a") as file:
                file.write(json.dumps({"seconds": time.perf_counter() - began, "loss": done.loss}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
