"""replica: how long one request takes, and whether the version that answers it fails."""

import time

from instruct_ray.serving.answer import ReplicaMessage
from instruct_ray.serving.replica_messages import COMPLETE_REASONS, AnswerStart, ReplicaChunk

# A request that is cancelled after this part of its time limit has taken too long; before it, its client has left.
LATE_PART = 0.5


class RequestTimer:
    """Sees the messages of one answer."""

    def __init__(self, max_seconds: float) -> None:
        """Start the time; a request may take `max_seconds`."""
        self._started, self._max_seconds = time.monotonic(), max_seconds
        # Choices of the answer that are not finished; None before the answer begins.
        self._num_open: int | None = None
        self._has_failed = False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    @property
    def is_failed(self) -> bool | None:
        """Whether the version failed; None if the request shows nothing: it was refused, or its client has left."""
        if self._has_failed:
            return True
        if self._num_open is None:
            return None
        if self._num_open == 0:
            return False
        return True if self.seconds > LATE_PART * self._max_seconds else None

    def see(self, message: ReplicaMessage) -> None:
        """Look at the next message."""
        if isinstance(message, AnswerStart):
            self._num_open = message.num_choices
        elif isinstance(message, ReplicaChunk) and message.finish_reason is not None:
            assert self._num_open is not None
            self._num_open -= 1
            if message.finish_reason not in COMPLETE_REASONS:
                self.fail()

    def fail(self) -> None:
        """Note that an exception ended the answer."""
        self._has_failed = True
