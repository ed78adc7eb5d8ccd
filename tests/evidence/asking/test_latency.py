"""Latency: arms in turn, in blocks; recorded times; which engines fit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.serving import ServingConfig
from instruct_ray.evidence.arms import LocalModel
from instruct_ray.evidence.asking.engines import Capacity, choose_num_engines
from instruct_ray.evidence.asking.journal import Journal
from instruct_ray.evidence.asking.latency import (
    ONE_AFTER_THE_OTHER,
    choose_latency_rows,
    describe_latency,
    load_latency,
    record_latency,
)
from tests.fakes import ignore_status


@dataclass
class FakeArm:
    """An arm whose requests take as many seconds as their number."""

    name: str
    num_requests: int
    log: list[tuple[str, int]] = field(default_factory=list)

    @property
    def latency_key(self) -> str:
        return self.name

    def time_one(self, index: int) -> float:
        self.log.append((self.name, index))
        return float(index)

    def time_many(self, num_at_once: int) -> float:
        assert num_at_once == 8
        return 4.0


def test_arms_are_timed_in_turn_in_blocks_after_a_warm_up(tmp_path: Path) -> None:
    log: list[tuple[str, int]] = []
    arms = {name: FakeArm(name, count, log) for name, count in (("a", 12), ("b", 12), ("few", 3))}
    with Journal(tmp_path / "journal.jsonl") as journal:
        record_latency(arms, journal, ignore_status, interleaved=True)
        warm_up, blocks = log[:3], log[3:]
        assert warm_up == [("a", 0), ("b", 0), ("few", 0)]
        turns = [name for number, (name, _) in enumerate(blocks) if number == 0 or blocks[number - 1][0] != name]
        assert turns == ["a", "b", "few", "a", "b"]
        assert load_latency(journal, "a").seconds == tuple(map(float, range(12)))
        assert load_latency(journal, "a").requests_per_second_at_8 == 3.0
        # Too few for 8 at once.
        assert load_latency(journal, "few").requests_per_second_at_8 is None
    # What is recorded is not timed again.
    with Journal(tmp_path / "journal.jsonl") as journal:
        record_latency(arms | {"c": FakeArm("c", 0, log)}, journal, ignore_status, interleaved=False)
        assert len(log) == 3 + 27
        assert describe_latency(journal, ["a", "b"]) == []
        assert describe_latency(journal, ["a", "c"]) == [ONE_AFTER_THE_OTHER]


def test_timed_rows_are_spread_over_all_rows() -> None:
    assert list(choose_latency_rows(10, 4)) == [0, 2, 5, 7]
    assert list(choose_latency_rows(3, 72)) == [0, 1, 2]


def make_model(num_bytes: int) -> LocalModel:
    renderer: Any = None
    return LocalModel("base", Path("base"), renderer, 512, "base", num_bytes)


@pytest.mark.parametrize(
    ("num_cpus", "num_gpus", "num_bytes", "fits", "num_engines"),
    [
        (2, 0, 100, True, 2),
        # 2 × 3 CPUs of 4.
        (3, 0, 100, False, 1),
        # 2 × 2.5 × 500 bytes of 2,000.
        (1, 0, 500, False, 4),
        (1, 1, 500, False, 1),
        (1, 0.5, 500, True, 2),
        (9, 0, 100, False, 1),
    ],
)
def test_engines_that_fit(num_cpus: float, num_gpus: float, num_bytes: int, fits: bool, num_engines: int) -> None:
    capacity = Capacity(cpus=4, cores=4, gpus=1, memory=2000)
    serving = ServingConfig(num_cpus=num_cpus, num_gpus=num_gpus)
    assert capacity.fits_together([make_model(num_bytes)] * 2, serving) is fits
    assert capacity.num_engines(serving) == num_engines


def test_engines_have_enough_to_do() -> None:
    assert [choose_num_engines(None, num_prompts, 4) for num_prompts in (0, 100, 300, 9000)] == [1, 1, 3, 4]
    assert choose_num_engines(3, 10, 1) == 3
    # All CPUs are taken by engines that are kept for timing.
    assert choose_num_engines(None, 9000, 0) == 1
