"""When ranks check for preemption, and how often they make checkpoints during one."""

import pytest
import ray.train

from instruct_ray.training.worker import preemption
from instruct_ray.training.worker.preemption import CHECK_SECONDS, MAX_SAVE_FRACTION, PreemptionMonitor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test can advance."""
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


def test_only_rank_0_votes_for_checks(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    rank_0, rank_1 = PreemptionMonitor(0), PreemptionMonitor(1)
    assert not rank_0.is_check_due
    clock[0] += CHECK_SECONDS
    assert rank_0.is_check_due
    assert not rank_1.is_check_due
    assert not rank_0.check()
    assert not rank_1.check()
    assert not rank_0.is_check_due
    clock[0] += 1e9
    assert not rank_1.is_check_due


def test_next_check_is_delayed_by_the_duration_of_a_save(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: "a node is being preempted")
    monitor = PreemptionMonitor(0)
    assert monitor.check()
    monitor.record_save(10.0)
    clock[0] += 10 / MAX_SAVE_FRACTION - 1
    assert not monitor.is_check_due
    clock[0] += 1
    assert monitor.is_check_due
