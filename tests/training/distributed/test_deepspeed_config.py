"""The settings that DeepSpeed gets."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.deepspeed_config import build_deepspeed_config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_settings_follow_the_config(stage: int) -> None:
    config = build_deepspeed_config(TrainConfig.model_validate({"zero_stage": stage, "precision": "fp32"}), 3, 4)
    assert config["zero_optimization"]["stage"] == stage
    assert config["train_batch_size"] == 12
    assert not config["bf16"]["enabled"]
