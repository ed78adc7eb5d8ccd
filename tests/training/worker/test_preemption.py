"""When ranks ask Ray whether a node goes away, and how often they save while it does."""

import pytest
import ray.train

from instruct_ray.training.worker import preemption
from instruct_ray.training.worker.preemption import CHECK_SECONDS, MAX_SAVE_FRACTION, PreemptionMonitor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


def test_rank_0_says_when(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    first, other = PreemptionMonitor(0), PreemptionMonitor(1)
    assert not first.is_check_due
    clock[0] += CHECK_SECONDS
    assert first.is_check_due
    assert not other.is_check_due
    assert not first.check()
    assert not other.check()
    assert not first.is_check_due
    clock[0] += 1e9
    assert not other.is_check_due


def test_saving_leaves_time_for_steps(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: "a node goes away")
    drain = PreemptionMonitor(0)
    assert drain.check()
    drain.record_save(10.0)
    clock[0] += 10 / MAX_SAVE_FRACTION - 1
    assert not drain.is_check_due
    clock[0] += 1
    assert drain.is_check_due
