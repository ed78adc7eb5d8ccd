"""Checkpoints that can't be written, or can't be read, and runs that continue from any of them."""

import re
import shutil
import statistics
from pathlib import Path

from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.checkpoint.manifest import find_committed, find_corruption, load_manifest
from instruct_ray.training.checkpoint.recovery import RAY_SNAPSHOT
from instruct_ray.training.driver.build_spec import build_plan
from tests.drill.faults import SLOW_SECONDS
from tests.drill.lab import Figures, Lab
from tests.drill.watch import lines_of


def disk_full(lab: Lab) -> Figures:
    """No room at step 4, which is seen before; the disk full in the middle of writing step 16, and free again."""
    whole = lab.whole()
    config = lab.start("full", checkpoint_every=4)
    lab.arm("no_room", "full@16")
    with lab.watch(config) as watch:
        watch.at(5, lambda: lab.disarm("no_room"))
        lab.run(config)
    assert not lab.armed
    text = RunFolder.from_config(config).path.joinpath("notices.jsonl").read_text()
    assert "no checkpoint at step 4: " in text, text
    assert re.search(r"the disk is full: [\d.]+ MiB needed, 0\.0 MiB free", text), text
    # Seen too late: the workers start again, from the checkpoint before or one that followed meanwhile.
    assert re.search(r"worker \d failed: .*the disk is full: ", text), text
    assert re.search(r"continuing from step (12|[2-4]\d)", text), text
    found = lab.compared(config, whole, watch)
    found.seconds_to_next_step = []
    return found


def damaged(lab: Lab) -> Figures:
    """The five newest checkpoints spoilt in five ways, and Ray's own file emptied: the sixth is used."""
    whole = lab.whole()
    config = lab.copy(whole, "damaged", 30)
    train = RunFolder.from_config(config).ray_train_dir
    newest = sorted(train.glob("checkpoint-*"), reverse=True)
    shards = [shard_of(checkpoint) for checkpoint in newest[:3]]
    truncate(shards[0])
    flip(shards[1])
    shards[2].unlink()
    newest[3].joinpath("manifest-00001.json").write_bytes(b"")
    newest[4].joinpath("manifest-00000.json").unlink()
    (train / RAY_SNAPSHOT).write_bytes(b"")
    with lab.watch(config) as watch:
        lab.run(config)
    text = RunFolder.from_config(config).path.joinpath("notices.jsonl").read_text()
    for shard, problem in zip(shards, ("bytes, not", "other bytes than", "is missing"), strict=True):
        assert f"{shard} " in text and problem in text, text
    assert "continuing from step 25" in text, text
    found = lab.compared(config, whole, watch)
    found.planned -= 25
    return found


def all_damaged(lab: Lab) -> Figures:
    """No checkpoint left that is whole: the run says so and does not begin anew, whatever happened to them."""
    whole = lab.whole()
    said = []
    for name, spoil in (("flipped", flip_all), ("unsigned", empty_manifests), ("removed", remove_all)):
        config = lab.copy(whole, name, 3)
        folder = RunFolder.from_config(config)
        shutil.copy(RunFolder.from_config(whole).ray_train_dir / RAY_SNAPSHOT, folder.ray_train_dir)
        spoil(folder.ray_train_dir)
        left = sorted(folder.ray_train_dir.glob("checkpoint-*"))
        try:
            lab.run(config)
        except (InputError, RuntimeError) as error:
            said.append(str(error))
        assert len(lines_of(folder.metrics_file)) == 3, "it began anew"
        assert sorted(folder.ray_train_dir.glob("checkpoint-*")) == left, "what is left of them was removed"
        assert not folder.model_dir.exists()
    assert len(said) == 3 and all("none of the checkpoints in" in text for text in said), said
    assert all("to train from the beginning" in text for text in said), said
    return Figures(says="3 ways of losing all: each refused, exit code and message")


def split_anywhere(lab: Lab) -> Figures:
    """Continued from step 1, from the end of an epoch and from the middle of one."""
    whole = lab.whole()
    found = Figures(is_bitwise=True)
    steps_per_epoch = build_plan(whole, find_packs(RunFolder.from_config(whole))).steps_per_epoch
    for step in (1, steps_per_epoch, steps_per_epoch + 3):
        config = lab.copy(whole, f"split-{step}", step)
        with lab.watch(config) as watch:
            lab.run(config)
        each = lab.compared(config, whole, watch)
        found.planned += each.planned - step
        found.executed += each.executed
        found.is_bitwise = bool(found.is_bitwise and each.is_bitwise)
    return found


def ends_while_writing(lab: Lab) -> Figures:
    """The last checkpoint is slow to be written and training ends at once: the run ends behind it."""
    whole = lab.whole()
    config = lab.start("slow", checkpoint_every=4)
    num_steps = build_plan(config, find_packs(RunFolder.from_config(config))).num_steps
    lab.arm(f"slow@{num_steps}")
    with lab.watch(config) as watch:
        lab.run(config)
    assert not lab.armed
    newest = find_committed(RunFolder.from_config(config).ray_train_dir)[0]
    assert load_manifest(newest).step == num_steps
    assert not any(find_corruption(newest, rank, 2) for rank in range(2))
    gaps = [(step, later - one) for step, (one, later) in enumerate(zip(watch.times, watch.times[1:], strict=False), 1)]
    behind = statistics.median(gap for step, gap in gaps if step % 4 == 0)
    others = statistics.median(gap for step, gap in gaps if step % 4)
    found = lab.compared(config, whole, watch)
    found.says = (
        f"written {SLOW_SECONDS:.0f} s after the last step; a checkpoint holds up training for "
        f"{(behind - others) * 1000:.0f} ms"
    )
    return found


def shard_of(checkpoint: Path) -> Path:
    """A file of optimizer state."""
    return next(checkpoint.rglob("*rank_1_*optim_states.pt"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_all(train: Path) -> None:
    for checkpoint in train.glob("checkpoint-*"):
        flip(shard_of(checkpoint))


def empty_manifests(train: Path) -> None:
    for path in train.glob("checkpoint-*/manifest-*.json"):
        path.write_bytes(b"")


def remove_all(train: Path) -> None:
    for checkpoint in train.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
