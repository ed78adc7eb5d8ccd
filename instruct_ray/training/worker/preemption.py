"""worker, all ranks: asks Ray whether a node of the workers is about to be taken away, so that checkpoints are made."""

import math
import time

import ray.train

CHECK_SECONDS = 2.0
# While a node is going away, the share of the time that saving may take.
MAX_SAVE_FRACTION = 0.25


class PreemptionMonitor:
    """Asks Ray every few seconds. Its answer is a barrier of all ranks, so rank 0 decides when, by its vote in the step."""

    def __init__(self, rank: int) -> None:
        self._due = time.monotonic() + CHECK_SECONDS if rank == 0 else math.inf

    @property
    def is_check_due(self) -> bool:
        """Whether this rank asks all ranks to call `check` after the current step."""
        return time.monotonic() >= self._due

    def check(self) -> bool:
        """Whether a node is being taken away; all ranks call it."""
        if self._due < math.inf:
            self._due = time.monotonic() + CHECK_SECONDS
        return ray.train.get_preemption_info() is not None

    def record_save(self, seconds: float) -> None:
        """A checkpoint took `seconds`: the next check waits for a multiple of that."""
        if self._due < math.inf:
            self._due = max(self._due, time.monotonic() + seconds / MAX_SAVE_FRACTION)
