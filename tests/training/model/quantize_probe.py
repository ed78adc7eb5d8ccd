"""One rank that trains adapters on a 4-bit base model and resumes from its checkpoint; prints JSON.

python -m tests.training.model.quantize_probe RANK WORLD_SIZE FOLDER STAGE
"""

import json
import sys
from pathlib import Path

import torch

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.load import load_model
from tests.training.distributed.offload_probe import CHECKPOINT_STEP, NUM_MICRO_BATCHES, TAG, train_steps
from tests.training.processes import rank_process

LORA = LoraConfig(rank=4, quantize="4bit")


def main(rank: int, world_size: int, folder: Path, stage: int) -> None:
    """Train from the start to the end, and again from the checkpoint in the middle."""
    with rank_process(rank, world_size, folder):
        train = TrainConfig.model_validate({"zero_stage": stage, "learning_rate": 1e-2})

        def build_engine() -> DeepSpeedEngine:
            load = lambda: load_model(folder / "base", LORA, train, torch.bfloat16, 0, "sdpa")  # noqa: E731
            return DeepSpeedEngine(train, NUM_MICRO_BATCHES, world_size, load)

        checkpoint = folder / "checkpoint"
        engine = build_engine()
        dtypes = sorted({str(parameter.dtype) for parameter in engine.model.parameters()})
        uninterrupted = train_steps(engine, rank, world_size, 0, checkpoint)
        engine._engine.destroy()
        engine = build_engine()
        engine.load(checkpoint, TAG)
        resumed = train_steps(engine, rank, world_size, CHECKPOINT_STEP)
        state = engine.full_state_dict()
        results = {
            "dtypes": dtypes,
            "uninterrupted": uninterrupted,
            "resumed": resumed,
            "num_lora_tensors": sum("lora" in name for name in state or {}),
        }
        print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
