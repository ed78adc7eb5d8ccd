"""A storage that is really full: a small file system, filled to the last byte while a run writes to it."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.build_spec import build_plan
from tests.drill.harness import CaseResult, DrillHarness
from tests.drill.monitor import read_metrics
from tests.small_disk import DiskFiller, NoSmallDiskError, small_disk

DISK_BYTES = 64 * 2**20
# A restart of the workers would fail the case.
TRAIN = {"epochs": 34, "checkpoint_every": 20, "num_checkpoints": 2, "max_failures": 0}
FULL_SECONDS = 8.0
WAIT_SECONDS = 60.0


def fill_disk_for_some_seconds(harness: DrillHarness) -> CaseResult:
    """The disk is full while metrics and a checkpoint are written, and has room again later."""
    return _run_on_small_disk(harness, "full", fill_for_some_seconds)


def fill_disk_until_the_end(harness: DrillHarness) -> CaseResult:
    """The disk is full when the run ends."""
    return _run_on_small_disk(harness, "full-at-end", fill_until_the_end)


def _run_on_small_disk(harness: DrillHarness, name: str, run: Callable[[DrillHarness], CaseResult]) -> CaseResult:
    """Run a case with its runs on a small disk; the run of that name ends like an uninterrupted one."""
    uninterrupted = harness.train_uninterrupted(**TRAIN)
    disk = harness.folder / "full-disk"
    try:
        with small_disk(disk, DISK_BYTES), harness.storage_on(disk):
            result = run(harness)
            result.is_bitwise_equal = harness.is_bitwise_equal(harness.build_config(name, **TRAIN), uninterrupted)
    except NoSmallDiskError as error:
        return CaseResult(skipped=str(error))
    return result


def fill_for_some_seconds(harness: DrillHarness) -> CaseResult:
    """No restart, no step redone, no line lost; and the driver says what is wrong while it is."""
    config = harness.prepare_run("full", **TRAIN)
    folder, disk = RunFolder.from_config(config), harness.storage
    # However fast the steps are, step 180 has the first checkpoint with room on the disk again, and training ends
    # only after the driver knows of the room.
    harness.arm_faults("hold@180", "disk_full@180", "hold@200")

    def fill_and_empty() -> None:
        filler = DiskFiller(disk)
        filler.start()
        time.sleep(FULL_SECONDS)
        filler.stop()
        harness.disarm_fault("hold@180")
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_writable_again(messages) and time.monotonic() < deadline:
            time.sleep(0.1)
        harness.disarm_fault("hold@200")

    with harness.monitor(config) as monitor, collected_log() as messages:
        monitor.cause_at(40, fill_and_empty)
        harness.train(config)
    assert not harness.armed_faults
    num_steps = build_plan(config, find_packs(folder)).num_steps
    assert [metrics["step"] for metrics in read_metrics(folder.metrics_file)] == list(range(1, num_steps + 1))
    events = folder.events_file.read_text()
    assert re.search(r"no checkpoint at step \d+: .*the disk is full: [\d.]+ MiB needed, 0\.0 MiB free", events), events
    assert re.search(r"the checkpoint of step 180 was not written: ", events), events
    assert "worker" not in events and "resuming" not in events, events
    expected = "can't be written: No space left on device; training goes on"
    assert any(expected in message for message in messages), messages
    assert is_writable_again(messages), messages
    result = harness.measure(config, monitor)
    result.seconds_to_next_step = []
    return result


def fill_until_the_end(harness: DrillHarness) -> CaseResult:
    """The run fails with one line and without a restart; with room again it resumes, to the same result."""
    config = harness.prepare_run("full-at-end", **TRAIN)
    folder, disk = RunFolder.from_config(config), harness.storage
    message, filler = "", DiskFiller(disk)
    with harness.monitor(config) as monitor, collected_log() as messages:
        monitor.cause_at(100, filler.start)
        try:
            harness.train(config)
        except RuntimeError as error:
            message = str(error)
    assert re.match(r"training stopped: the model can't be written to .*free some space", message), message
    assert any("could not be written (No space left on device)" in line for line in messages), messages
    assert not folder.model_dir.exists()
    filler.stop()
    harness.train(config)
    assert re.search(r"resuming from step (80|100|120|140)\b", folder.events_file.read_text())
    return CaseResult(note="the run ended with one line, and was resumed")


def is_writable_again(messages: Sequence[str]) -> bool:
    """Whether the driver has said that the storage can be written again."""
    return any(message.endswith("can be written again") for message in messages)


@contextmanager
def collected_log() -> Iterator[list[str]]:
    """The warnings that the driver logs inside the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("instruct_ray")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
