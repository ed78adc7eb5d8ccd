"""One rank that builds the engine of a large base model; prints how much memory that took as JSON, in bytes.

python -m tests.training.model.load_probe RANK WORLD_SIZE FOLDER STAGE

Only anonymous memory counts: the base model's files are mapped, and the system frees their pages under pressure.
"""

import json
import re
import sys
import threading
from pathlib import Path

import torch
from torch import nn

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.load import load_model
from tests.training.processes import rank_process


class PeakMemory:
    """The peak of this process's anonymous memory since `highest` was last set, in bytes."""

    def __init__(self) -> None:
        self.highest = _anonymous_memory()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.highest = max(self.highest, _anonymous_memory())
            threading.Event().wait(0.002)


def main(rank: int, world_size: int, folder: Path, stage: int) -> None:
    """Measure the peak of loading, the size of the loaded weights, and the peak of building the engine."""
    with rank_process(rank, world_size, folder):
        train = TrainConfig.model_validate({"zero_stage": stage})
        sizes: dict[str, int] = {}
        peak = PeakMemory()

        def load() -> nn.Module:
            before = _anonymous_memory()
            peak.highest = before
            model = load_model(folder / "base", None, train, torch.bfloat16, 0, "sdpa")
            sizes["loading"] = peak.highest - before
            sizes["weights"] = sum(tensor.numel() * tensor.element_size() for tensor in _local_parameters(model))
            sizes["before"] = before
            return model

        DeepSpeedEngine(train, 1, world_size, load)
        sizes["engine"] = peak.highest - sizes["before"]
        print(json.dumps(sizes))


def _local_parameters(model: nn.Module) -> list[torch.Tensor]:
    """This rank's part of the parameters: a shard of each at stage 3, else all of it."""
    return [vars(parameter).get("ds_tensor", parameter) for parameter in model.parameters()]


def _anonymous_memory() -> int:
    [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
