"""worker, all ranks: commits a rank's shards of a checkpoint in a background thread. A failure is a result, no error.

Rank 0 also waits there until all ranks have committed, records the checkpoint, and removes those that are too old.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from instruct_ray.errors import one_line
from instruct_ray.training.checkpoint.manifest import is_committed
from instruct_ray.training.checkpoint.recovery import keep_newest_checkpoints

POLL_SECONDS = 0.2
# How long rank 0 waits for the other ranks after its own shards are committed.
OTHERS_SECONDS = 60.0

logger = logging.getLogger(__name__)


class BackgroundCommit:
    """The commit of one checkpoint by this rank."""

    def __init__(self, step: int, commit: Callable[[], None], *, and_then: Callable[[], None]) -> None:
        """Start to commit; `and_then` is called in the thread if that succeeds."""
        self.step = step
        self.problem: str | None = None
        """Why this rank's shards could not be committed; None if they are, or are still being written."""
        self._commit, self._and_then = commit, and_then
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"checkpoint {step}", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until this rank's shards are committed or have failed; returns False if they are still being written."""
        return self._ended.wait(seconds)

    def join(self) -> None:
        """Wait until `and_then` has returned, or OTHERS_SECONDS."""
        self._thread.join(OTHERS_SECONDS)

    def _run(self) -> None:
        try:
            self._commit()
        # Any error: the run goes on with the checkpoint before.
        except Exception as error:
            logger.exception("the checkpoint of step %d was not committed", self.step)
            self.problem = str(error) if isinstance(error, OSError) and error.strerror is None else one_line(error)
        self._ended.set()
        if self.problem is None:
            self._and_then()


def keep_newest(
    checkpoint: Path, num_checkpoints: int, unusable: frozenset[str], on_committed: Callable[[], None]
) -> None:
    """Wait until all ranks have committed a checkpoint, record that, and keep `num_checkpoints`. Rank 0 calls it.

    `on_committed` is called before any is removed. `unusable` names checkpoints that are removed, too.
    """
    deadline = time.monotonic() + OTHERS_SECONDS
    try:
        while not is_committed(checkpoint):
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
        on_committed()
        keep_newest_checkpoints(checkpoint, num_checkpoints, unusable)
    except OSError as error:
        # Tried again after the next checkpoint.
        logger.warning("%s: old checkpoints were not removed: %s", checkpoint.parent, one_line(error))
