"""The parts of the loop that need no cluster."""

import pytest

from instruct_ray.config import TrainConfig
from instruct_ray.training.loop import learning_rate_at
from instruct_ray.training.zero import deepspeed_config


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    train = TrainConfig(learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate_at(step, 10, train) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1


def test_one_step_and_no_warm_up_are_fine() -> None:
    assert learning_rate_at(0, 1, TrainConfig(learning_rate=1.0, warmup_fraction=0.0)) == 1.0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_deepspeed_settings_follow_the_config(stage: int) -> None:
    config = deepspeed_config(TrainConfig.model_validate({"zero_stage": stage, "precision": "fp32"}), 3, 4)
    assert config["zero_optimization"]["stage"] == stage
    assert config["train_batch_size"] == 12
    assert not config["bf16"]["enabled"]
