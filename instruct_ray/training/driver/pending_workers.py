"""Workers that the cluster has no room for: a run that waits for a node says so."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.nodes import list_alive_nodes
from instruct_ray.training.capacity.placement import describe_shortage, plan_placement

POLL_SECONDS = 2.0
# Without a step: a longer one is no reason to look.
QUIET_SECONDS = 10.0


@contextmanager
def report_pending_workers(metrics: Path, train: TrainConfig, status: Callable[[str], None]) -> Iterator[None]:
    """While the block runs and no step is made, say what the cluster lacks."""
    done = threading.Event()
    thread = threading.Thread(target=_poll, args=(metrics, train, status, done), name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def describe_pending(train: TrainConfig) -> str:
    """What the cluster lacks to place the fewest workers that the run may have; empty if nothing."""
    nodes = list_alive_nodes()
    return "" if plan_placement(nodes, train) else f"waiting for nodes: {describe_shortage(nodes, train)}"


def _poll(metrics: Path, train: TrainConfig, status: Callable[[str], None], done: threading.Event) -> None:
    size, since = -1, time.monotonic()
    while not done.wait(POLL_SECONDS):
        found = metrics.stat().st_size if metrics.exists() else 0
        if found != size:
            size, since = found, time.monotonic()
        elif time.monotonic() - since > QUIET_SECONDS and (text := describe_pending(train)):
            status(text)
