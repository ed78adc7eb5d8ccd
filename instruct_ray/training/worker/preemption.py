"""worker, all ranks: detects that a node is about to be preempted, so that checkpoints are saved before it happens."""

import math
import time

import ray.train

CHECK_SECONDS = 2.0
# The largest fraction of the time that saving may take while a node is being preempted.
MAX_SAVE_FRACTION = 0.25
# How long before a node is taken away the ranks make their last checkpoint, beside the time of a step and of two
# checkpoints.
SPARE_SECONDS = 3.0
# Ranks that are still there so long after the deadline train on.
PATIENCE_SECONDS = 60.0


class PreemptionMonitor:
    """Checks for preemption every few seconds, and decides which step is the last one before a node is taken away.

    Rank 0 decides, and its votes are summed with the step's totals: Ray's call is a barrier of all ranks, and the last
    step must be the same on all of them.
    """

    def __init__(self, rank: int) -> None:
        now = time.monotonic()
        self._due = now + CHECK_SECONDS if rank == 0 else math.inf
        self._last_step_by = math.inf
        # When the node is taken away, in seconds since 1970.
        self._deadline = 0.0
        self._voted_at = now
        self._save_seconds = 0.0

    def vote(self) -> dict[str, bool]:
        """This rank's votes before a step: check for preemption after it, and that it is the last one.

        Other ranks than 0 never vote for either.
        """
        now = time.monotonic()
        step_seconds, self._voted_at = now - self._voted_at, now
        return {"check_preemption": now >= self._due, "is_last": now + step_seconds >= self._last_step_by}

    def check(self) -> bool:
        """Return whether a node is being preempted."""
        info = ray.train.get_preemption_info()
        if self._due < math.inf:
            now = time.monotonic()
            self._due = now + CHECK_SECONDS
            self._last_step_by = math.inf
        if info is not None and info.deadline_ms is not None and info.deadline_ms / 1000 > self._deadline:
            self._deadline = info.deadline_ms / 1000
        if self._due < math.inf and info is not None and (seconds_left := self._deadline - time.time()) > 0:
            self._last_step_by = time.monotonic() + seconds_left - SPARE_SECONDS - 2 * self._save_seconds
        return info is not None

    def wait_for_end(self) -> None:
        """Wait until the node is taken away, when Ray Train ends all ranks and restarts them on other nodes.

        A step more would be done again. Returns only if the ranks are still there PATIENCE_SECONDS later.
        """
        time.sleep(max(0.0, self._deadline - time.time()) + PATIENCE_SECONDS)
        if self._due < math.inf:
            self._last_step_by = math.inf

    def record_save(self, seconds: float) -> None:
        """Delay the next check after a checkpoint that took `seconds`, so that steps get most of the time."""
        self._save_seconds = seconds
        if self._due < math.inf:
            self._due = max(self._due, time.monotonic() + seconds / MAX_SAVE_FRACTION)
