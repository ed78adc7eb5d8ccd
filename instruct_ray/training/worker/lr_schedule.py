"""pure: the learning rate of each step."""

import math

from instruct_ray.config.train import TrainConfig


def learning_rate_at(step: int, num_steps: int, train: TrainConfig) -> float:
    """Compute the learning rate of `step`, counted from 0: linear warm-up, then `train.schedule`."""
    num_warmup = round(train.warmup_fraction * num_steps)
    if step < num_warmup:
        return train.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    match train.schedule:
        case "cosine":
            return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return train.learning_rate * (1 - progress)
        case "constant":
            return train.learning_rate
