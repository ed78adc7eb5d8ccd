"""The rows of the fault matrix: what is done to a run, where it runs, and how long it may take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.drill import checkpoints, kills, memory, nodes, other_tests, processes
from tests.drill.lab import Figures, Lab


@dataclass(frozen=True)
class Row:
    """One fault."""

    name: str
    fault: str
    drill: Callable[[Lab], Figures]
    seconds: int
    """What it may take at most on two cores."""
    place: Literal["local", "own"] = "local"
    """On the local cluster that rows share, or on one of its own."""


ROWS = [
    Row("F1", "kill -9 of a worker", kills.worker_killed, 120),
    Row("F2", "the same at 4 points around a checkpoint", kills.killed_around_a_checkpoint, 180),
    Row("F3", "SIGSTOP of a worker", kills.worker_stopped, 120),
    Row("F4", "a worker's node gone, a spare there", nodes.node_lost_with_a_spare, 180, "own"),
    Row("F4b", "a worker's node gone, no spare", nodes.node_lost_without_a_spare, 180, "own"),
    Row("F4c", "the same, num_workers: [1, 2]", nodes.elastic, 240, "own"),
    Row("F5", "a worker's node drained (spot)", nodes.node_drained, 360, "own"),
    Row("F6", "SIGTERM, Ctrl-C, ray job stop", other_tests.stops, 400, "own"),
    Row("F7", "kill -9 of driver and controller", processes.driver_and_controller_killed, 180),
    Row("F8", "the head node killed", processes.head_killed, 360),
    Row("F9", "a worker killed every 60 s", kills.killer, 600),
    Row("F10", "disk full, before and while writing", checkpoints.disk_full, 120),
    Row("F11", "5 checkpoints damaged, the 6th whole", checkpoints.damaged, 120),
    Row("F11b", "all checkpoints damaged", checkpoints.all_damaged, 120),
    Row("F12", "NaN and infinity", other_tests.nonfinite, 300, "own"),
    Row("F13", "two runs with one name", other_tests.one_at_a_time, 60, "own"),
    Row("F14", "out of memory, simulated", memory.out_of_memory, 120),
    Row("F15", "continued from step 1, an epoch's end, later", checkpoints.split_anywhere, 180),
    Row("F16", "the end while a checkpoint is written", checkpoints.ends_while_writing, 120),
]
