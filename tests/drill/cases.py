"""The cases of the drill: which fault is caused, on which cluster, and how long the case may take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.drill import checkpoints, full_disk, kills, memory, nodes, other_tests, processes, soak
from tests.drill.harness import CaseResult, DrillHarness


@dataclass(frozen=True)
class DrillCase:
    """One fault."""

    name: str
    fault: str
    run: Callable[[DrillHarness], CaseResult]
    max_seconds: int
    """How long the case may take on two cores."""
    cluster: Literal["shared", "own"] = "shared"
    """Whether it runs on the local cluster that cases share, or on its own."""


CASES = [
    DrillCase("F1", "kill -9 of a worker", kills.kill_worker, 120),
    DrillCase("F2", "the same at 4 points around a checkpoint", kills.kill_around_checkpoint, 300),
    DrillCase("F3", "SIGSTOP of a worker", kills.freeze_worker, 120),
    DrillCase("F4", "node of a worker lost, with a spare node", nodes.lose_node_with_spare, 180, "own"),
    DrillCase("F4b", "node of a worker lost, no spare node", nodes.lose_node_without_spare, 180, "own"),
    DrillCase("F4c", "the same, num_workers: [1, 2]", nodes.lose_node_of_elastic_run, 240, "own"),
    DrillCase("F5", "node of a worker drained (spot)", nodes.drain_node, 360, "own"),
    DrillCase("F6", "SIGTERM, Ctrl-C, ray job stop", other_tests.run_stop_tests, 400, "own"),
    DrillCase("F7", "kill -9 of driver and controller", processes.kill_driver_and_controller, 180),
    DrillCase("F8", "head node killed", processes.kill_head, 360),
    DrillCase("F9", "a worker killed every 60 s", kills.kill_workers_repeatedly, 600),
    DrillCase("F10", "disk full for a while", full_disk.fill_disk_for_some_seconds, 240),
    DrillCase("F10b", "disk full when the run ends", full_disk.fill_disk_until_the_end, 240),
    DrillCase("F11", "5 checkpoints corrupted, the 6th intact", checkpoints.corrupt_newest, 120),
    DrillCase("F11b", "all checkpoints corrupted", checkpoints.corrupt_all, 120),
    DrillCase("F12", "NaN and infinity", other_tests.run_nonfinite_tests, 300, "own"),
    DrillCase("F13", "two runs with one name", other_tests.run_lock_tests, 60, "own"),
    DrillCase("F14", "out of memory, simulated", memory.run_out_of_memory, 120),
    DrillCase("F15", "resumed from step 1, an epoch's end, later", checkpoints.resume_from_any_step, 180),
    DrillCase("F16", "end of the run during a checkpoint write", checkpoints.end_during_write, 120),
    # As long as --soak-minutes, and the time to tune and register.
    DrillCase("soak", "the endpoint under steady load", soak.soak_endpoint, 2400),
]
