"""worker, all ranks: detects that a node is about to be preempted, so that checkpoints are saved before it happens."""

import math
import time

import ray.train

CHECK_SECONDS = 2.0
# The largest fraction of the time that saving may take while a node is being preempted.
MAX_SAVE_FRACTION = 0.25


class PreemptionMonitor:
    """Checks for preemption every few seconds.

    Ray's call is a barrier of all ranks, so rank 0 decides when to check: its vote is summed with the step's totals.
    """

    def __init__(self, rank: int) -> None:
        self._due = time.monotonic() + CHECK_SECONDS if rank == 0 else math.inf

    @property
    def is_check_due(self) -> bool:
        """Whether this rank votes for a check after the current step; always false on other ranks than 0."""
        return time.monotonic() >= self._due

    def check(self) -> bool:
        """Return whether a node is being preempted."""
        if self._due < math.inf:
            self._due = time.monotonic() + CHECK_SECONDS
        return ray.train.get_preemption_info() is not None

    def record_save(self, seconds: float) -> None:
        """Delay the next check after a checkpoint that took `seconds`, so that steps get most of the time."""
        if self._due < math.inf:
            self._due = max(self._due, time.monotonic() + seconds / MAX_SAVE_FRACTION)
