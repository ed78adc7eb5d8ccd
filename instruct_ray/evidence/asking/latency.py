"""driver: what requests take: one at a time, in blocks of one arm after the other, and 8 at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from instruct_ray.evidence.answers import LatencySample
from instruct_ray.evidence.asking.journal import Journal

# Requests of one arm before the next arm's turn: a machine that is slow for a while slows all arms.
BLOCK = 8
NUM_AT_ONCE = 8
ONE_AFTER_THE_OTHER = (
    "the models don't fit into the cluster at the same time, so latency was measured one model after the other: a "
    "machine that was slow for a while slowed some arms only"
)


class TimedArm(Protocol):
    """An arm whose requests can be timed."""

    @property
    def latency_key(self) -> str:
        """Key of its times in the journal."""

    @property
    def num_requests(self) -> int:
        """Different requests that it has."""

    def time_one(self, index: int) -> float | None:
        """The seconds that one request takes; None if it failed."""

    def time_many(self, num_at_once: int) -> float | None:
        """The seconds that all of them take with `num_at_once` requests in flight; None if one failed."""


def record_latency(
    arms: Mapping[str, TimedArm], journal: Journal, status: Callable[[str], None], *, interleaved: bool
) -> None:
    """Time the arms that the journal has no times of, and record them.

    Args:
        arms: the arms by name.
        journal: where the times are recorded.
        status: called with progress messages.
        interleaved: whether these are all arms, so that a slow moment slowed all of them.
    """
    pending = {name: arm for name, arm in arms.items() if arm.latency_key not in journal}
    samples = measure_latency(pending, status)
    journal.add(
        (pending[name].latency_key, asdict(one) | {"interleaved": interleaved}) for name, one in samples.items()
    )


def load_latency(journal: Journal, key: str) -> LatencySample:
    """The times that were recorded of an arm."""
    values: dict[str, Any] = journal[key]
    return LatencySample(tuple(values["seconds"]), values["requests_per_second_at_8"])


def describe_latency(journal: Journal, keys: Sequence[str]) -> list[str]:
    """That arms were not timed in turn, if they were not."""
    return [] if all(journal[key]["interleaved"] for key in keys) else [ONE_AFTER_THE_OTHER]


def measure_latency(arms: Mapping[str, TimedArm], status: Callable[[str], None]) -> dict[str, LatencySample]:
    """Time all requests of all arms, interleaved in blocks; each arm is warmed up by a request that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        if arm.num_requests:
            arm.time_one(0)
    most = max((arm.num_requests for arm in arms.values()), default=0)
    for start in range(0, most, BLOCK):
        for name, arm in arms.items():
            for index in range(start, min(start + BLOCK, arm.num_requests)):
                if (taken := arm.time_one(index)) is not None:
                    seconds[name].append(taken)
            status(f"{name}: latency, {len(seconds[name])} of {arm.num_requests} requests")
    return {name: LatencySample(tuple(seconds[name]), _measure_rate(arm)) for name, arm in arms.items()}


def choose_latency_rows(num_rows: int, count: int) -> Sequence[int]:
    """The indices of the rows whose requests are timed, evenly spread over all rows."""
    count = min(count, num_rows)
    return [index * num_rows // count for index in range(count)]


def _measure_rate(arm: TimedArm) -> float | None:
    if arm.num_requests < NUM_AT_ONCE:
        return None
    seconds = arm.time_many(NUM_AT_ONCE)
    return None if seconds is None else arm.num_requests / seconds
