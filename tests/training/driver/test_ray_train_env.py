"""Ray Train's timeouts are set in the environment while a run lasts, and restored afterwards."""

import os

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.driver.ray_train_env import ray_train_timeouts

HEALTH_CHECK = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@pytest.mark.parametrize(("train", "start_timeout"), [(TrainConfig(), None), (TrainConfig(num_workers=(1, 2)), "15")])
def test_timeouts_are_set_only_inside_the_block(
    monkeypatch: pytest.MonkeyPatch, train: TrainConfig, start_timeout: str | None
) -> None:
    for name in (HEALTH_CHECK, START_TIMEOUT):
        monkeypatch.delenv(name, raising=False)
    with ray_train_timeouts(train):
        assert (os.environ.get(HEALTH_CHECK), os.environ.get(START_TIMEOUT)) == ("0.5", start_timeout)
    assert HEALTH_CHECK not in os.environ
    assert START_TIMEOUT not in os.environ


def test_variables_that_the_user_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEALTH_CHECK, "7")
    with ray_train_timeouts(TrainConfig()):
        assert os.environ[HEALTH_CHECK] == "7"
    assert os.environ[HEALTH_CHECK] == "7"
