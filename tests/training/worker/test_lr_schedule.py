"""The learning rate schedule."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.worker.lr_schedule import learning_rate_at


def test_learning_rate_rises_then_falls_to_zero() -> None:
    train = TrainConfig(learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate_at(step, 10, train) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1


@pytest.mark.parametrize(("schedule", "expected"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0] * 4)])
def test_linear_and_constant_schedules(schedule: str, expected: list[float]) -> None:
    train = TrainConfig.model_validate({"learning_rate": 1.0, "warmup_fraction": 0.0, "schedule": schedule})
    assert [learning_rate_at(step, 4, train) for step in range(4)] == expected


def test_single_step_without_warmup() -> None:
    assert learning_rate_at(0, 1, TrainConfig(learning_rate=1.0, warmup_fraction=0.0)) == 1.0
