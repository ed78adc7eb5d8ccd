"""pure: which optimizer DeepSpeed leaves to torch."""

from instruct_ray.config.train import TrainConfig


def uses_torch_optimizer(train: TrainConfig) -> bool:
    """Whether DeepSpeed leaves weights and gradients to torch's own optimizer: neither sharded nor mixed precision.

    DeepSpeed clips such gradients, but does not tell their norm.
    """
    return train.zero_stage == 0 and train.precision == "fp32"
