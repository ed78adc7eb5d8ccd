"""One ZeroEngine of a stage and precision: which steps change the weights? Prints JSON.

python -m tests.training.nonfinite_probe STAGE PRECISION        (DeepSpeed wants a process of its own)
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from instruct_ray.config import TrainConfig
from instruct_ray.training.modeling.model import DTYPES
from instruct_ray.training.zero import ZeroEngine


def main(stage: str, precision: str) -> None:
    """A good step, one with NaN, one with infinity, a good one; two micro-batches each."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ.setdefault("MASTER_PORT", "29500")
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    train = TrainConfig.model_validate({"zero_stage": int(stage), "precision": precision, "learning_rate": 0.1})
    dtype = DTYPES[precision]
    torch.manual_seed(0)
    engine = ZeroEngine(train, 2, 1, lambda: nn.Linear(4, 1, bias=False).to(dtype))
    steps = []
    for factor in (1.0, float("nan"), float("inf"), 2.0):
        before = weights(engine)
        for micro in (1.0, factor):
            engine.backward(engine.model(torch.ones(2, 4, dtype=dtype)).sum() * micro)
            engine.step(0.1)
        changed = bool((weights(engine) != before).any())
        steps.append(
            {"applied": engine.was_applied, "changed": changed, "finite": bool(weights(engine).isfinite().all())}
        )
    print(json.dumps(steps))


def weights(engine: ZeroEngine) -> torch.Tensor:
    state = engine.full_state_dict()
    assert state is not None
    return state["weight"].detach().clone().float()


if __name__ == "__main__":
    main(*sys.argv[1:])
