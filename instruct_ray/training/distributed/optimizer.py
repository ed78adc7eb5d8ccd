"""pure: who updates the weights, torch's optimizer or DeepSpeed's wrapper around it."""

from instruct_ray.config.train import TrainConfig


def uses_torch_optimizer(train: TrainConfig) -> bool:
    """Whether torch's optimizer works on the model's own weights and gradients: not sharded, not mixed precision.

    DeepSpeed can clip these gradients, but does not report their norm, so the engine clips them.
    """
    return train.zero_stage == 0 and train.precision == "fp32"
