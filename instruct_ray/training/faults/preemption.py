"""A node under the workers that is being taken away, known ahead: checkpoints until it goes."""

import math
import time

import ray.train

LOOK_SECONDS = 2.0
# While a node goes, saving takes at most one part in so many of the time.
SAVING_SHARE = 4


class Drain:
    """Asks Ray now and then. Its answer is a barrier of all ranks, so rank 0 says when, with the step it has done."""

    def __init__(self, rank: int) -> None:
        self._due = time.monotonic() + LOOK_SECONDS if rank == 0 else math.inf

    @property
    def is_due(self) -> bool:
        """Whether this rank wants all to look behind the current step."""
        return time.monotonic() >= self._due

    def look(self) -> bool:
        """Whether a node is being taken away; all ranks call it."""
        if self._due < math.inf:
            self._due = time.monotonic() + LOOK_SECONDS
        return ray.train.get_preemption_info() is not None

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long: the next one waits for a multiple of that."""
        self._due = max(self._due, time.monotonic() + SAVING_SHARE * seconds) if self._due < math.inf else math.inf
