"""Workers that are killed, at any point of a step or around a checkpoint, and a worker that hangs."""

import itertools
import math
import os
import signal
import statistics
import time

from instruct_ray.run.folder import RunFolder
from tests.drill.harness import CaseResult, DrillHarness
from tests.drill.monitor import LAST_STEP_SECONDS, find_workers, kill_a_worker, read_metrics

KILL_POINTS = ("mid_write@4", "before_manifest@8", "after_manifest@12")
NUM_KILLS = 3
SECONDS_BETWEEN_KILLS = 60.0
STEPS_PER_EPOCH = 6
HEALTH_CHECK_TIMEOUT = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"


def kill_worker(harness: DrillHarness) -> CaseResult:
    """`kill -9` of a worker in the middle of the run, between two checkpoints."""
    uninterrupted = harness.train_uninterrupted()
    config = harness.prepare_run("killed")
    with harness.monitor(config) as monitor:
        monitor.cause_at(15, kill_a_worker)
        harness.train(config)
    return harness.compare(config, uninterrupted, monitor)


def kill_around_checkpoint(harness: DrillHarness) -> CaseResult:
    """Four kills in one run.

    Before the first checkpoint, between two shards of a checkpoint, before its manifest is written, and after that but
    before Ray knows of the checkpoint.
    """
    uninterrupted = harness.train_uninterrupted()
    config = harness.prepare_run("points", checkpoint_every=4, max_failures=4)
    harness.arm_faults(*KILL_POINTS)
    with harness.monitor(config) as monitor:
        monitor.cause_at(2, kill_a_worker)
        harness.train(config)
    assert not harness.armed_faults, f"faults that did not fire: {harness.armed_faults}"
    return harness.compare(config, uninterrupted, monitor)


def freeze_worker(harness: DrillHarness) -> CaseResult:
    """SIGSTOP of a worker: it hangs, and Ray finds that by its health check."""
    uninterrupted = harness.train_uninterrupted()
    config = harness.prepare_run("frozen")
    frozen_pids: list[int] = []

    def freeze() -> None:
        frozen_pids.append(find_workers()[-1].pid)
        os.kill(frozen_pids[0], signal.SIGSTOP)

    os.environ[HEALTH_CHECK_TIMEOUT] = "10"
    try:
        with harness.monitor(config) as monitor:
            monitor.cause_at(15, freeze)
            harness.train(config)
    finally:
        del os.environ[HEALTH_CHECK_TIMEOUT]
    result = harness.compare(config, uninterrupted, monitor)
    assert all(process.pid != frozen_pids[0] for process in find_workers()), "the frozen worker is still running"
    result.note = "health check timeout 10 s"
    return result


def kill_workers_repeatedly(harness: DrillHarness) -> CaseResult:
    """A worker killed every 60 s. Goodput compares the run with the same run without kills."""
    metrics = read_metrics(RunFolder.from_config(harness.train_uninterrupted()).metrics_file)
    step_seconds = statistics.median(step["seconds"] for step in metrics)
    epochs = math.ceil((NUM_KILLS * SECONDS_BETWEEN_KILLS + 20) / step_seconds / STEPS_PER_EPOCH)
    config = harness.prepare_run("repeated", epochs=epochs, checkpoint_every=50, max_failures=NUM_KILLS)
    started = time.monotonic()
    with harness.monitor(config) as monitor:
        for number in range(NUM_KILLS):
            monitor.cause_after(SECONDS_BETWEEN_KILLS * (number + 1), kill_a_worker)
        harness.train(config)
    run_seconds = time.monotonic() - started
    result = harness.measure(config, monitor)
    # The mean step of this run: with its checkpoints, without its restarts.
    intervals = [later - earlier for earlier, later in itertools.pairwise(monitor.step_times)]
    mean_seconds = statistics.mean(interval for interval in intervals if interval < LAST_STEP_SECONDS)
    result.goodput = (monitor.step_times[0] - started + result.num_planned * mean_seconds) / run_seconds
    result.note = f"{len(monitor.fault_times)} kills in {run_seconds:.0f} s, {mean_seconds * 1000:.0f} ms per step"
    return result
