"""One rank that adds up many bf16 gradients at every ZeRO stage, with and without offloading. Prints JSON.

python -m tests.training.distributed.bf16_probe RANK WORLD_SIZE FOLDER      (DeepSpeed needs a process of its own)
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from instruct_ray.config.train import OffloadConfig, TrainConfig
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from tests.training.processes import rank_process

NUM_MICRO_BATCHES = 16
# In bf16 1 + SMALL is 1, and so is every sum of 1 and SMALL in turn.
SMALL = 2**-9
OFFLOADS = {
    "plain": OffloadConfig(),
    "optimizer": OffloadConfig(optimizer=True),
    "both": OffloadConfig(optimizer=True, parameters=True),
}
CASES = [(stage, name) for stage in range(4) for name in OFFLOADS]


class Model(nn.Module):
    """A frozen and a trained layer, as with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(1, 1, bias=False).requires_grad_(False)
        self.trained = nn.Linear(1, 1, bias=False)
        for layer in (self.frozen, self.trained):
            nn.init.ones_(layer.weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The gradient of the trained weight is the sum of the rows."""
        trained: torch.Tensor = self.trained(self.frozen(rows))
        return trained


def main(rank: int, world_size: int, folder: Path) -> None:
    """Print the gradient of one step of each case that exists, as this rank's optimizer got it."""
    with rank_process(rank, world_size, folder):
        gradients = {}
        for stage, offload in CASES:
            if (stage == 0 and offload != "plain") or (stage < 3 and offload == "both"):
                continue
            values = {"zero_stage": stage, "max_grad_norm": 10.0, "offload": OFFLOADS[offload].model_dump()}
            gradients[f"{stage}-{offload}"] = train_step(TrainConfig.model_validate(values), rank, world_size)
        print(json.dumps(gradients))


def train_step(train: TrainConfig, rank: int, world_size: int) -> float:
    """The gradients of the first rank are 1 and then all SMALL, those of the others all SMALL.

    Returns:
        Their sum; 0 on a rank whose shard of the optimizer is empty.
    """
    engine = DeepSpeedEngine(train, NUM_MICRO_BATCHES, world_size, lambda: Model().to(torch.bfloat16))
    for micro in range(NUM_MICRO_BATCHES):
        gradient = 1.0 if rank == micro == 0 else SMALL
        engine.backward(engine.model(torch.full((1, 1), gradient, dtype=torch.bfloat16)).sum())
        engine.step(0.1)
    # AdamW's first moment after its first step.
    moments = [state["exp_avg"].abs().max().item() for state in engine._engine.optimizer.optimizer.state.values()]
    engine._engine.destroy()
    return max(moments, default=0.0) / (1 - 0.9)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
