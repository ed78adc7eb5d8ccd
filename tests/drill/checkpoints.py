"""Checkpoints that can't be written or read, and runs that resume from any checkpoint."""

import itertools
import shutil
import statistics
from pathlib import Path

from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.checkpoint.manifest import find_committed, find_corruption, load_manifest
from instruct_ray.training.checkpoint.recovery import RECORD_FILE
from instruct_ray.training.driver.build_spec import build_plan
from tests.drill.fault_points import SLOW_SECONDS
from tests.drill.harness import CaseResult, DrillHarness
from tests.drill.monitor import read_metrics


def corrupt_newest(harness: DrillHarness) -> CaseResult:
    """The five newest checkpoints corrupted in five ways, and the record of them emptied: the sixth one is used."""
    uninterrupted = harness.train_uninterrupted()
    config = harness.copy_run(uninterrupted, "corrupted", 30)
    folder = RunFolder.from_config(config)
    newest = sorted(folder.ray_train_dir.glob("checkpoint-*"), reverse=True)
    shards = [find_optimizer_shard(checkpoint) for checkpoint in newest[:3]]
    truncate_file(shards[0])
    flip_bit(shards[1])
    shards[2].unlink()
    newest[3].joinpath("manifest-00001.json").write_bytes(b"")
    newest[4].joinpath("manifest-00000.json").unlink()
    (folder.ray_train_dir / RECORD_FILE).write_bytes(b"")
    with harness.monitor(config) as monitor:
        harness.train(config)
    events = folder.events_file.read_text()
    for shard, problem in zip(shards, ("bytes, not", "other bytes than", "is missing"), strict=True):
        assert f"{shard} " in events and problem in events, events
    assert "resuming from step 25" in events, events
    result = harness.compare(config, uninterrupted, monitor)
    result.num_planned -= 25
    return result


def corrupt_all(harness: DrillHarness) -> CaseResult:
    """No intact checkpoint left, in three ways: the run is refused and does not restart from scratch."""
    uninterrupted = harness.train_uninterrupted()
    messages = []
    for name, corrupt in (("flipped", flip_all), ("emptied", empty_manifests), ("removed", remove_all)):
        config = harness.copy_run(uninterrupted, name, 3)
        folder = RunFolder.from_config(config)
        shutil.copy(RunFolder.from_config(uninterrupted).ray_train_dir / RECORD_FILE, folder.ray_train_dir)
        corrupt(folder.ray_train_dir)
        checkpoints = sorted(folder.ray_train_dir.glob("checkpoint-*"))
        try:
            harness.train(config)
        except (InputError, RuntimeError) as error:
            messages.append(str(error))
        assert len(read_metrics(folder.metrics_file)) == 3, "the run restarted from scratch"
        assert sorted(folder.ray_train_dir.glob("checkpoint-*")) == checkpoints, "checkpoints were removed"
        assert not folder.model_dir.exists()
    assert len(messages) == 3 and all("none of the checkpoints in" in message for message in messages), messages
    assert all("to train from the beginning" in message for message in messages), messages
    return CaseResult(note="3 ways to corrupt all checkpoints, each refused with a message")


def resume_from_any_step(harness: DrillHarness) -> CaseResult:
    """Resumed from step 1, from the end of an epoch and from the middle of one."""
    uninterrupted = harness.train_uninterrupted()
    total = CaseResult(is_bitwise_equal=True)
    steps_per_epoch = build_plan(uninterrupted, find_packs(RunFolder.from_config(uninterrupted))).steps_per_epoch
    for step in (1, steps_per_epoch, steps_per_epoch + 3):
        config = harness.copy_run(uninterrupted, f"resumed-{step}", step)
        with harness.monitor(config) as monitor:
            harness.train(config)
        result = harness.compare(config, uninterrupted, monitor)
        total.num_planned += result.num_planned - step
        total.num_executed += result.num_executed
        total.is_bitwise_equal = bool(total.is_bitwise_equal and result.is_bitwise_equal)
    return total


def end_during_write(harness: DrillHarness) -> CaseResult:
    """The last checkpoint takes long to write while the training ends: the run ends after the checkpoint."""
    uninterrupted = harness.train_uninterrupted()
    config = harness.prepare_run("slow", checkpoint_every=4)
    num_steps = build_plan(config, find_packs(RunFolder.from_config(config))).num_steps
    harness.arm_faults(f"slow@{num_steps}")
    with harness.monitor(config) as monitor:
        harness.train(config)
    assert not harness.armed_faults
    newest = find_committed(RunFolder.from_config(config).ray_train_dir)[0]
    assert load_manifest(newest).step == num_steps
    assert not any(find_corruption(newest, rank, 2) for rank in range(2))
    intervals = [later - earlier for earlier, later in itertools.pairwise(monitor.step_times)]
    after_checkpoint = statistics.median(interval for step, interval in enumerate(intervals, 1) if step % 4 == 0)
    after_other_step = statistics.median(interval for step, interval in enumerate(intervals, 1) if step % 4)
    result = harness.compare(config, uninterrupted, monitor)
    result.note = (
        f"written {SLOW_SECONDS:.0f} s after the last step; a checkpoint delays training by "
        f"{(after_checkpoint - after_other_step) * 1000:.0f} ms"
    )
    return result


def find_optimizer_shard(checkpoint: Path) -> Path:
    return next(checkpoint.rglob("*rank_1_*optim_states.pt"))


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_all(checkpoint_dir: Path) -> None:
    for checkpoint in checkpoint_dir.glob("checkpoint-*"):
        flip_bit(find_optimizer_shard(checkpoint))


def empty_manifests(checkpoint_dir: Path) -> None:
    for path in checkpoint_dir.glob("checkpoint-*/manifest-*.json"):
        path.write_bytes(b"")


def remove_all(checkpoint_dir: Path) -> None:
    for checkpoint in checkpoint_dir.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
