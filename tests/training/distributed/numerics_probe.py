"""One rank of a short training in fp32; rank 0 prints losses and gradient norms of every step as JSON.

python -m tests.training.distributed.numerics_probe RANK WORLD_SIZE FOLDER STAGE VARIANT

VARIANT is a key of VARIANTS. DeepSpeed needs a process of its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.tree import empty_pack
from instruct_ray.training.distributed.collectives import all_reduce_sums
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model import output_head
from instruct_ray.training.model.load import load_model
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.model.requirements import packed_attn_implementation
from instruct_ray.training.worker.lr_schedule import learning_rate_at
from instruct_ray.training.worker.step import make_loss_fn, summarize_step, train_step
from tests.training.processes import rank_process
from tests.training.tiny_models import CPU

PACKS_PER_STEP = 4
NUM_EPOCHS = 3
OFFLOAD_ALL = {"optimizer": True, "parameters": True}
# Ways to train that save memory: options of `train`, and LoRA.
VARIANTS: dict[str, tuple[dict[str, Any], LoraConfig | None]] = {
    "plain": ({}, None),
    "checkpointing": ({"activation_checkpointing": True}, None),
    "checkpointing-offload": ({"activation_checkpointing": True, "offload": OFFLOAD_ALL}, None),
    "lora": ({}, LoraConfig(rank=2)),
    "lora-checkpointing": ({"activation_checkpointing": True}, LoraConfig(rank=2)),
    "lora-checkpointing-offload": ({"activation_checkpointing": True, "offload": OFFLOAD_ALL}, LoraConfig(rank=2)),
}


def main(rank: int, world_size: int, folder: Path, stage: str, variant: str) -> None:
    """Train all steps of a plan, as the train loop does."""
    options, lora = VARIANTS[variant]
    with rank_process(rank, world_size, folder):
        values = {"zero_stage": int(stage), "precision": "fp32", "learning_rate": 3e-3}
        train = TrainConfig.model_validate(values | options)
        dataset, hf_config = PackedDataset.open(folder / "packs"), AutoConfig.from_pretrained(folder / "base")
        plan = BatchPlan(dataset.row_groups, PACKS_PER_STEP, NUM_EPOCHS, seed=0)
        attn_implementation = packed_attn_implementation(hf_config, CPU)
        check = PackingCheck(path="packed", reason="", attn_implementation=attn_implementation, versions={})
        engine = DeepSpeedEngine(
            train,
            plan.packs_per_rank(world_size),
            world_size,
            lambda: load_model(folder / "base", lora, train, torch.float32, 0, attn_implementation),
        )
        # In chunks of 2 rows, however few target tokens a pack has.
        output_head.CPU_CHUNK_ROWS, output_head.is_chunked = 2, lambda *arguments, **options: True
        assert output_head.find_unchunkable_head(hf_config, engine.module) is None
        loss_fn = make_loss_fn(hf_config, check, torch.float32, in_chunks=True)
        losses, norms = [], []
        for step in range(plan.num_steps):
            indices = plan.rank_packs(step, rank, world_size)
            packs = [empty_pack() if index is None else dataset.take([index])[0] for index in indices]
            num_target_tokens = int(dataset.num_target_tokens[plan.step_packs(step)].sum())
            learning_rate = learning_rate_at(step, plan.num_steps, train)
            local = train_step(engine, loss_fn, packs, num_target_tokens, learning_rate)
            totals = all_reduce_sums(local.sums(), engine.device)
            result = summarize_step(engine, local, totals, num_target_tokens)
            losses.append(result.loss)
            norms.append(result.grad_norm)
        print(json.dumps({"losses": losses, "norms": norms}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
