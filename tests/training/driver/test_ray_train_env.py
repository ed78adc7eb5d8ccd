"""Ray Train is made to look sooner while a run lasts, and nothing is left of that."""

import os

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.driver.ray_train_env import ray_train_timeouts

LOOK, START = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@pytest.mark.parametrize(("train", "start"), [(TrainConfig(), None), (TrainConfig(num_workers=(1, 2)), "15")])
def test_only_while_it_lasts(monkeypatch: pytest.MonkeyPatch, train: TrainConfig, start: str | None) -> None:
    for name in (LOOK, START):
        monkeypatch.delenv(name, raising=False)
    with ray_train_timeouts(train):
        assert (os.environ.get(LOOK), os.environ.get(START)) == ("0.5", start)
    assert LOOK not in os.environ
    assert START not in os.environ


def test_what_is_set_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOOK, "7")
    with ray_train_timeouts(TrainConfig()):
        assert os.environ[LOOK] == "7"
    assert os.environ[LOOK] == "7"
