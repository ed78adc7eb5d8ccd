"""When ranks ask Ray whether a node goes away, and how often they save while it does."""

import pytest
import ray.train

from instruct_ray.training.faults import preemption
from instruct_ray.training.faults.preemption import LOOK_SECONDS, SAVING_SHARE, Drain


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


def test_rank_0_says_when(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    first, other = Drain(0), Drain(1)
    assert not first.is_due
    clock[0] += LOOK_SECONDS
    assert first.is_due
    assert not other.is_due
    assert not first.look()
    assert not other.look()
    assert not first.is_due
    clock[0] += 1e9
    assert not other.is_due


def test_saving_leaves_time_for_steps(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: "a node goes away")
    drain = Drain(0)
    assert drain.look()
    drain.saved(10.0)
    clock[0] += SAVING_SHARE * 10 - 1
    assert not drain.is_due
    clock[0] += 1
    assert drain.is_due
