"""replica: a new version that gets a share of the requests, and whether it answers them as well as the present one."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from instruct_ray.config.serving import CanaryConfig

Verdict = Literal["running", "accepted", "rejected"]


@dataclass
class _Side:
    """The finished requests of one version."""

    num_failed: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of the requests that were answered."""

    @property
    def num_requests(self) -> int:
        return self.num_failed + len(self.seconds)

    @property
    def error_rate(self) -> float:
        return self.num_failed / max(self.num_requests, 1)


class Canary:
    """Splits requests between two versions and compares how they were answered."""

    def __init__(self, config: CanaryConfig, old: str, new: str) -> None:
        self._config, self.old, self.new = config, old, new
        self._sides = {old: _Side(), new: _Side()}
        self._turn = 0.0
        self._lock = threading.Lock()
        self.verdict: Verdict = "running"
        self.reason = ""
        """With numbers: why it was accepted or rejected."""

    def choose(self) -> str:
        """The version for the next request: evenly spread, so that any few requests have the share."""
        if self.verdict != "running":
            return self.new if self.verdict == "accepted" else self.old
        self._turn += self._config.share
        if self._turn < 1:
            return self.old
        self._turn -= 1
        return self.new

    def record(self, version: str, seconds: float, *, is_failed: bool) -> None:
        """Count a finished request, and decide as soon as that is possible.

        Args:
            version: that answered; any other than the two is not counted.
            seconds: how long the request took.
            is_failed: whether it failed by a fault of the version.
        """
        with self._lock:
            if version not in self._sides or self.verdict != "running":
                return
            side = self._sides[version]
            if is_failed:
                side.num_failed += 1
            else:
                side.seconds.append(seconds)
            self._judge()

    @property
    def status(self) -> str:
        """How far it is, in one sentence."""
        old, new = self._sides[self.old], self._sides[self.new]
        return (
            f"version {self.new} gets {self._config.share:.0%} of the requests: {new.num_requests} of "
            f"{self._config.min_requests} finished, {new.num_failed} failed; of version {self.old} "
            f"{old.num_requests} finished, {old.num_failed} failed"
        )

    def _judge(self) -> None:
        config, old, new = self._config, self._sides[self.old], self._sides[self.new]
        allowed = old.error_rate + config.max_error_increase
        numbers = (
            f"{new.num_failed} of {new.num_requests} requests to version {self.new} failed, {old.num_failed} of "
            f"{old.num_requests} to version {self.old}"
        )
        # More than all requests that are looked at may have. So a version that fails always is soon gone.
        if new.num_failed > allowed * max(config.min_requests, new.num_requests):
            self._decide("rejected", f"{numbers} (allowed: {allowed:.1%})")
            return
        if new.num_requests < config.min_requests or not old.num_requests:
            return
        if config.max_latency_ratio is not None:
            # There is nothing to compare where all requests of a version failed.
            ratio = median(new.seconds) / median(old.seconds) if new.seconds and old.seconds else 1.0
            numbers += f"; median {_format(new.seconds)} against {_format(old.seconds)}"
            if ratio > config.max_latency_ratio:
                self._decide("rejected", f"{numbers}, {ratio:.1f} times (allowed: {config.max_latency_ratio:g})")
                return
        self._decide("accepted", numbers)

    def _decide(self, verdict: Verdict, reason: str) -> None:
        self.verdict, self.reason = verdict, reason


def _format(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.3g} s" if seconds else "none"
