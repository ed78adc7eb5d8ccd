"""When ranks check for preemption, and how often they make checkpoints during one."""

import pytest
import ray.train
from ray.train.v2.api.preemption import PreemptionInfo

from instruct_ray.training.worker import preemption
from instruct_ray.training.worker.preemption import (
    CHECK_SECONDS,
    MAX_SAVE_FRACTION,
    SPARE_SECONDS,
    PreemptionMonitor,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test can advance."""
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


def test_only_rank_0_votes_for_checks(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    rank_0, rank_1 = PreemptionMonitor(0), PreemptionMonitor(1)
    assert not rank_0.vote()["check_preemption"]
    clock[0] += CHECK_SECONDS
    assert rank_0.vote()["check_preemption"]
    assert not rank_1.vote()["check_preemption"]
    assert not rank_0.check()
    assert not rank_1.check()
    assert not rank_0.vote()["check_preemption"]
    clock[0] += 1e9
    assert not any(rank_1.vote().values())


def test_next_check_is_delayed_by_the_duration_of_a_save(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: PreemptionInfo(None, {"a node": [1]}))
    monitor = PreemptionMonitor(0)
    assert monitor.check()
    monitor.record_save(10.0)
    clock[0] += 10 / MAX_SAVE_FRACTION - 1
    assert not monitor.vote()["check_preemption"]
    clock[0] += 1
    assert monitor.vote() == {"check_preemption": True, "is_last": False}


def test_the_last_step_leaves_time_for_two_checkpoints(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption.time, "time", lambda: 1_000_000 + clock[0])
    deadline = PreemptionInfo(int((1_000_000 + clock[0] + 60) * 1000), {"a node": [1]})
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: deadline)
    monitor = PreemptionMonitor(0)
    monitor.record_save(4.0)
    assert monitor.check()
    last_step_by = clock[0] + 60 - SPARE_SECONDS - 2 * 4
    # A step of five seconds that begins at `last_step_by - 5.5` ends before it, the next one would not.
    clock[0] = last_step_by - 10.5
    monitor.vote()
    clock[0] = last_step_by - 5.5
    assert not monitor.vote()["is_last"]
    clock[0] += 5
    assert monitor.vote()["is_last"]


def test_no_step_is_the_last_if_preemption_is_called_off(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption.time, "time", lambda: 1_000_000 + clock[0])
    info: list[PreemptionInfo | None] = [PreemptionInfo(int((1_000_000 + clock[0] + 1) * 1000), {"a node": [1]})]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: info[0])
    monitor = PreemptionMonitor(0)
    assert monitor.check()
    assert monitor.vote()["is_last"]
    info[0] = None
    assert not monitor.check()
    assert not monitor.vote()["is_last"]


def test_ranks_that_outlive_the_deadline_train_on(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption.time, "time", lambda: 1_000_000 + clock[0])
    monkeypatch.setattr(preemption.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    deadline = PreemptionInfo(int((1_000_000 + clock[0] + 5) * 1000), {"a node": [1]})
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: deadline)
    monitor = PreemptionMonitor(0)
    assert monitor.check()
    clock[0] += 3
    assert monitor.vote()["is_last"]
    monitor.wait_for_end()
    assert not monitor.vote()["is_last"]
    # The same deadline again.
    assert monitor.check()
    assert not monitor.vote()["is_last"]
