"""What the checks before a run look at, and what they find."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instruct_ray.config import LoraConfig, TrainConfig
from instruct_ray.training.preflight.shaping import Shaper


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    subject: str
    verdict: Literal["fine", "note", "refused"]
    said: str


@dataclass(frozen=True)
class Job:
    """What is to be trained, as far as the checks need it."""

    run: Path
    """The run's folder, which holds its checkpoints."""
    lora: LoraConfig | None
    train: TrainConfig
    shaper: Shaper
