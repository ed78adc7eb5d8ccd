"""Prints what a fault cost, for the table of README.md."""

import itertools

from tests.drill.monitor import RunMonitor


def record_fault(name: str, monitor: RunMonitor, num_planned: int) -> None:
    """Print the steps that were done again and the longest time without a step."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(monitor.step_times)]
    after = "" if not monitor.fault_times else f", longest pause {max(gaps):.1f} s"
    redone = monitor.num_executed - num_planned
    print(f"MULTINODE {name}: first step after {monitor.seconds_to_first_step:.1f} s, {redone} done again{after}")
