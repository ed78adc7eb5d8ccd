"""Workers that die: anywhere in a step, around a checkpoint, or without dying at all."""

import itertools
import math
import os
import signal
import statistics
import time

from instruct_ray.run.folder import RunFolder
from tests.drill.lab import Figures, Lab
from tests.drill.watch import LAST_STEP_SECONDS, kill_a_worker, lines_of, workers

POINTS = ("mid_write@4", "before_manifest@8", "after_manifest@12")
NUM_KILLS = 3
SECONDS_BETWEEN = 60.0
STEPS_PER_EPOCH = 6


def worker_killed(lab: Lab) -> Figures:
    """`kill -9` of a worker in the middle, before the next checkpoint."""
    whole = lab.whole()
    config = lab.start("killed")
    with lab.watch(config) as watch:
        watch.at(15, kill_a_worker)
        lab.run(config)
    return lab.compared(config, whole, watch)


def killed_around_a_checkpoint(lab: Lab) -> Figures:
    """Four kills in one run: before the first checkpoint, half of one written, all written and not signed, signed and
    not reported."""
    whole = lab.whole()
    config = lab.start("points", checkpoint_every=4, max_failures=4)
    lab.arm(*POINTS)
    with lab.watch(config) as watch:
        watch.at(2, kill_a_worker)
        lab.run(config)
    assert not lab.armed, f"did not come about: {lab.armed}"
    return lab.compared(config, whole, watch)


def worker_stopped(lab: Lab) -> Figures:
    """SIGSTOP of a worker: it does not die, it hangs. Ray finds it when its health check is answered too late."""
    whole = lab.whole()
    config = lab.start("stopped")
    frozen: list[int] = []

    def freeze() -> None:
        frozen.append(workers()[-1].pid)
        os.kill(frozen[0], signal.SIGSTOP)

    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = "10"
    try:
        with lab.watch(config) as watch:
            watch.at(15, freeze)
            lab.run(config)
    finally:
        del os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"]
    found = lab.compared(config, whole, watch)
    assert all(process.pid != frozen[0] for process in workers()), "the stopped worker is still there"
    found.says = "health check timeout 10 s"
    return found


def killer(lab: Lab) -> Figures:
    """A worker killed every 60 s; goodput is what the run would take alone over what it took."""
    alone = statistics.median(line["seconds"] for line in lines_of(RunFolder.from_config(lab.whole()).metrics))
    epochs = math.ceil((NUM_KILLS * SECONDS_BETWEEN + 20) / alone / STEPS_PER_EPOCH)
    config = lab.start("killer", epochs=epochs, checkpoint_every=50, max_failures=NUM_KILLS)
    began = time.monotonic()
    with lab.watch(config) as watch:
        for number in range(NUM_KILLS):
            watch.after(SECONDS_BETWEEN * (number + 1), kill_a_worker)
        lab.run(config)
    wall = time.monotonic() - began
    found = lab.figures(config, watch)
    # Its own pace, with its checkpoints and without its restarts.
    gaps = [gap for one, other in itertools.pairwise(watch.times) if (gap := other - one) < LAST_STEP_SECONDS]
    pace = statistics.mean(gaps)
    found.goodput = (watch.times[0] - began + found.planned * pace) / wall
    found.says = f"{len(watch.faults)} kills in {wall:.0f} s, {pace * 1000:.0f} ms a step"
    return found
