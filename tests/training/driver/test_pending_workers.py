"""A run that waits for nodes says so, and what it needs."""

import time
from pathlib import Path

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.driver import pending_workers as waiting
from instruct_ray.training.driver.pending_workers import describe_pending, report_pending_workers

pytestmark = pytest.mark.usefixtures("ray_4_cpus")


@pytest.mark.parametrize(
    ("train", "text"),
    [
        ({"num_workers": 3}, ""),
        ({"num_workers": 1, "cpus_per_worker": 3}, ""),
        ({"num_workers": (1, 9)}, ""),
        (
            {"num_workers": 3, "cpus_per_worker": 2},
            "waiting for nodes: 3 worker(s) of 2 CPU beside 1 CPU for Ray Data can't be placed on 1 node(s)",
        ),
        (
            {"num_workers": 1, "use_gpu": True},
            "waiting for nodes: 1 worker(s) of 1 CPU and 1 GPU beside 1 CPU for Ray Data can't be placed on 1 node(s)",
        ),
    ],
)
def test_what_the_cluster_lacks(train: dict[str, object], text: str) -> None:
    found = describe_pending(TrainConfig.model_validate(train))
    assert found.startswith(text) if text else not found


def test_it_is_said_once_no_step_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "QUIET_SECONDS", 0.2)
    said: list[str] = []
    metrics = tmp_path / "metrics.jsonl"
    with report_pending_workers(metrics, TrainConfig(num_workers=9), said.append):
        for _ in range(20):
            with metrics.open("a") as file:
                file.write("{}\n")
            time.sleep(0.02)
        assert said == []
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said[0].startswith("waiting for nodes: 9 worker(s) of 1 CPU beside 1 CPU for Ray Data can't be placed")
