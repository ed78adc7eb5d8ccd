"""pure: what the checks before a run look at, and their findings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.model_sizer import ModelSizer


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    verdict: Literal["ok", "warning", "error"]
    message: str


@dataclass(frozen=True)
class CheckInput:
    """What is to be trained, as far as the checks need it."""

    run_dir: Path
    """The run's folder, which holds its checkpoints."""
    lora: LoraConfig | None
    train: TrainConfig
    sizer: ModelSizer
