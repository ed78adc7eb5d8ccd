"""One rank that trains at every stage and precision, and reports which steps changed the weights. Prints JSON.

python -m tests.training.worker.nonfinite_probe RANK WORLD_SIZE FOLDER KIND

KIND is a kind of offloading of `offload_probe`. DeepSpeed needs a process of its own.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.load import DTYPES
from tests.training.distributed.offload_probe import KINDS
from tests.training.processes import rank_process

NUM_MICRO_BATCHES = 2
# By kind of offloading.
STAGES = {"none": (0, 1, 2, 3), "optimizer": (1, 2, 3), "parameters": (3,), "both": (3,)}


def main(rank: int, world_size: int, folder: Path, kind: str) -> None:
    """Train one engine after the other, at the stages that support the kind."""
    with rank_process(rank, world_size, folder):
        steps = {}
        for stage in STAGES[kind]:
            for precision in DTYPES:
                values = {"zero_stage": stage, "precision": precision, "learning_rate": 0.1}
                train = TrainConfig.model_validate(values | {"offload": KINDS[kind].model_dump()})
                steps[f"{stage}-{precision}"] = train_four_steps(train, world_size)
        print(json.dumps(steps))


def train_four_steps(train: TrainConfig, world_size: int) -> list[dict[str, bool]]:
    """Train a finite step, one with NaN, one with infinity, and a finite one, of two micro-batches each."""
    dtype = DTYPES[train.precision]
    torch.manual_seed(0)
    engine = DeepSpeedEngine(train, NUM_MICRO_BATCHES, world_size, lambda: nn.Linear(4, 1, bias=False).to(dtype))
    steps = []
    for factor in (1.0, float("nan"), float("inf"), 2.0):
        before = gather_weights(engine)
        for micro_factor in (1.0, factor):
            engine.backward(engine.model(torch.ones(2, 4, dtype=dtype)).sum() * micro_factor)
            engine.step(0.1)
        after = gather_weights(engine)
        changed, finite = bool((after != before).any()), bool(after.isfinite().all())
        steps.append({"applied": engine.was_applied, "changed": changed, "finite": finite})
    engine._engine.destroy()
    return steps


def gather_weights(engine: DeepSpeedEngine) -> torch.Tensor:
    state = engine.full_state_dict()
    assert state is not None
    return state["weight"].detach().clone().float()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
