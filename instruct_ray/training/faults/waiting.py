"""Workers that the cluster has no room for: a run that waits for a node says so."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from instruct_ray.config import TrainConfig
from instruct_ray.training.preflight import placement
from instruct_ray.training.preflight.nodes import alive_nodes
from instruct_ray.training.preflight.placement import place

LOOK_SECONDS = 2.0
# Without a step: a longer one is no reason to look.
QUIET_SECONDS = 10.0


@contextmanager
def watched(metrics: Path, train: TrainConfig, status: Callable[[str], None]) -> Iterator[None]:
    """While the block runs and no step is made, say what the cluster lacks."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(metrics, train, status, done), name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def shortage(train: TrainConfig) -> str:
    """What the cluster lacks to place the fewest workers that the run may have; empty if nothing."""
    nodes = alive_nodes()
    return "" if place(nodes, train) else f"waiting for nodes: {placement.shortage(nodes, train)}"


def _watch(metrics: Path, train: TrainConfig, status: Callable[[str], None], done: threading.Event) -> None:
    size, since = -1, time.monotonic()
    while not done.wait(LOOK_SECONDS):
        found = metrics.stat().st_size if metrics.exists() else 0
        if found != size:
            size, since = found, time.monotonic()
        elif time.monotonic() - since > QUIET_SECONDS and (text := shortage(train)):
            status(text)
