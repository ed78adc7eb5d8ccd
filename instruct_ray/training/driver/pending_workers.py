"""driver: reports that a run is waiting for nodes, and which resources the cluster lacks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from instruct_ray.background import PeriodicThread
from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.nodes import list_alive_nodes
from instruct_ray.training.capacity.placement import describe_shortage, plan_placement

POLL_SECONDS = 2.0
# The placement is checked after this long without a step.
QUIET_SECONDS = 10.0


@contextmanager
def report_pending_workers(
    metrics_file: Path, train: TrainConfig, status: Callable[[str], None]
) -> Iterator["PendingWorkersReporter"]:
    """Report to `status`, inside the block, what the cluster lacks while the run makes no steps."""
    reporter = PendingWorkersReporter(metrics_file, train, status)
    with PeriodicThread("pending workers", reporter.check, POLL_SECONDS):
        yield reporter


def describe_pending(train: TrainConfig) -> str | None:
    """Which resources the cluster lacks to place the fewest workers that a run may have; None if it lacks none."""
    nodes = list_alive_nodes()
    return None if plan_placement(nodes, train) else f"waiting for nodes: {describe_shortage(nodes, train)}"


class PendingWorkersReporter:
    """Looks whether a run makes steps and, if it makes none, whether its workers can be placed."""

    def __init__(self, metrics_file: Path, train: TrainConfig, status: Callable[[str], None]) -> None:
        self._metrics_file, self._train, self._status = metrics_file, train, status
        self._num_bytes = -1
        self._last_step_at = time.monotonic()
        self.is_waiting = False
        """Whether the run waits for nodes."""

    def check(self) -> None:
        """Check whether the metrics file has grown, and the placement if it has not for a while."""
        try:
            num_bytes = self._metrics_file.stat().st_size if self._metrics_file.exists() else 0
        except OSError:
            # A file system that fails for a moment is asked again.
            return
        if num_bytes != self._num_bytes:
            self._num_bytes, self._last_step_at = num_bytes, time.monotonic()
            self.is_waiting = False
        elif time.monotonic() - self._last_step_at > QUIET_SECONDS:
            message = describe_pending(self._train)
            self.is_waiting = message is not None
            if message is not None:
                self._status(message)
