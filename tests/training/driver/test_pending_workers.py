"""A run that waits for nodes reports what the cluster lacks."""

import time
from pathlib import Path

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.driver import pending_workers
from instruct_ray.training.driver.pending_workers import describe_pending, report_pending_workers

pytestmark = pytest.mark.usefixtures("ray_4_cpus")


@pytest.mark.parametrize(
    "train", [{"num_workers": 3}, {"num_workers": 1, "cpus_per_worker": 3}, {"num_workers": (1, 9)}]
)
def test_nothing_is_reported_if_the_workers_can_be_placed(train: dict[str, object]) -> None:
    assert describe_pending(TrainConfig.model_validate(train)) is None


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"num_workers": 3, "cpus_per_worker": 2},
            "waiting for nodes: 3 worker(s) of 2 CPU plus 1 CPU for Ray Data can't be placed on 1 node(s)",
        ),
        (
            {"num_workers": 1, "use_gpu": True},
            "waiting for nodes: 1 worker(s) of 1 CPU and 1 GPU plus 1 CPU for Ray Data can't be placed on 1 node(s)",
        ),
    ],
)
def test_missing_resources_are_named(train: dict[str, object], message: str) -> None:
    pending = describe_pending(TrainConfig.model_validate(train))
    assert pending is not None
    assert pending.startswith(message)


def test_status_is_reported_only_while_no_step_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_workers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(pending_workers, "QUIET_SECONDS", 0.2)
    messages: list[str] = []
    metrics_file = tmp_path / "metrics.jsonl"
    with report_pending_workers(metrics_file, TrainConfig(num_workers=9), messages.append):
        for _ in range(20):
            with metrics_file.open("a") as file:
                file.write("{}\n")
            time.sleep(0.02)
        assert messages == []
        deadline = time.monotonic() + 10
        while not messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert messages[0].startswith("waiting for nodes: 9 worker(s) of 1 CPU plus 1 CPU for Ray Data can't be placed")
