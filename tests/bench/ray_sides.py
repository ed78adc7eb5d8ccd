"""One rank of the torchrun side of the Ray benchmark: the training step of instruct_ray without Ray.

torchrun --nproc-per-node=2 -m tests.bench.ray_sides CONFIG.yaml OUT.jsonl
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.load import load_config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.packs.tree import empty_pack
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.distributed.collectives import all_reduce_sums
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.driver.build_spec import build_plan
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.packing_check import resolve_packing_mode
from instruct_ray.training.worker.lr_schedule import learning_rate_at
from instruct_ray.training.worker.spec import PACKING_CHECK_FILE
from instruct_ray.training.worker.step import make_loss_fn, summarize_step, train_step


def main() -> None:
    """Train to the end of the plan; writes one JSON line per step."""
    config, out = load_config(Path(sys.argv[1])), Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset, folder = find_packs(RunFolder.from_config(config)), resolve_base_model(config).folder
    plan, train, dtype = build_plan(config, dataset), config.train, DTYPES[config.train.precision]
    device = torch.device("cpu")
    hf_config, check_file = load_hf_config(folder), RunFolder.from_config(config).path / PACKING_CHECK_FILE
    check = resolve_packing_mode(folder, hf_config, dataset.path, None, check_file, device)
    engine = DeepSpeedEngine(
        train,
        plan.packs_per_rank(world_size),
        world_size,
        lambda: load_model(folder, None, train, dtype, plan.seed, check.attn_implementation),
    )
    loss_fn = make_loss_fn(hf_config, check, dtype, in_chunks=True)
    packs = dataset.take(range(dataset.num_packs))
    for step in range(plan.num_steps):
        start = time.perf_counter()
        num_target_tokens = sum(packs[index]["num_trained"] for index in plan.step_packs(step))
        rank_packs = [
            empty_pack() if index is None else packs[index] for index in plan.rank_packs(step, rank, world_size)
        ]
        rate = learning_rate_at(step, plan.num_steps, train)
        local = train_step(engine, loss_fn, rank_packs, num_target_tokens, rate)
        result = summarize_step(engine, local, all_reduce_sums(local.sums(), engine.device), num_target_tokens)
        if rank == 0:
            with out.open("a") as file:
                file.write(json.dumps({"seconds": time.perf_counter() - start, "loss": result.loss}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
