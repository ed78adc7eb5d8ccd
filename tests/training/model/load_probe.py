"""One rank that builds the engine of a large base: how much memory did that take? Prints JSON, in bytes.

python -m tests.training.model.load_probe RANK WORLD_SIZE FOLDER STAGE

Memory of its own: pages of the base's files, which it maps, are the system's and are given up when others need them.
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
from tests.training.processes import process_group


class Peak:
    """The most memory of its own that this process has had since, in bytes."""

    def __init__(self) -> None:
        self.highest = _own()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.highest = max(self.highest, _own())
            threading.Event().wait(0.002)


def main(rank: int, world_size: int, folder: Path, stage: int) -> None:
    """What loading took at most, what the weights take afterwards, and what the engine takes at most."""
    with process_group(rank, world_size, folder):
        train = TrainConfig.model_validate({"zero_stage": stage})
        found: dict[str, int] = {}
        peak = Peak()

        def load() -> nn.Module:
            before = _own()
            peak.highest = before
            model = load_model(folder / "base", None, train, torch.bfloat16, 0, "sdpa")
            found["loading"] = peak.highest - before
            found["weights"] = sum(each.numel() * each.element_size() for each in _held(model))
            found["before"] = before
            return model

        DeepSpeedEngine(train, 1, world_size, load)
        found["engine"] = peak.highest - found["before"]
        print(json.dumps(found))


def _held(model: nn.Module) -> list[torch.Tensor]:
    """What this rank holds of the parameters: at stage 3 its part."""
    return [vars(each).get("ds_tensor", each) for each in model.parameters()]


def _own() -> int:
    [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
