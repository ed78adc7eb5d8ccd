"""Recovery of the checkpoint folder after a crash, which checkpoints are kept, and clean-up at the end of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.errors import InputError
from instruct_ray.training.checkpoint.manifest import find_committed
from instruct_ray.training.checkpoint.recovery import (
    RAY_SNAPSHOT,
    RECORD_FILE,
    delete_unreferenced,
    keep_newest_checkpoints,
    recover_checkpoint_dir,
)

WriteCheckpoint = Callable[..., Path]


def write_record(checkpoint_dir: Path, *names: str) -> None:
    (checkpoint_dir / RECORD_FILE).write_text(json.dumps({"committed": names}))


def write_ray_snapshot(checkpoint_dir: Path, *names: str) -> None:
    """Write the list of checkpoints that runs of earlier versions have."""
    results = [{"checkpoint_dir_name": name} for name in names]
    (checkpoint_dir / RAY_SNAPSHOT).write_text(json.dumps({"ray_version": "2.0", "checkpoint_results": results}))


def list_checkpoints(checkpoint_dir: Path) -> list[Path]:
    return sorted(checkpoint_dir.glob("checkpoint-*"))


def test_newest_checkpoints_are_kept_and_recorded(write_checkpoint: WriteCheckpoint, checkpoint_dir: Path) -> None:
    checkpoints = []
    for step in (4, 8, 12, 16):
        checkpoints.append(write_checkpoint(step))
        keep_newest_checkpoints(checkpoints[-1], 2, frozenset())
        assert list_checkpoints(checkpoint_dir) == checkpoints[-2:]
        assert recover_checkpoint_dir(checkpoint_dir) == []


def test_uncommitted_checkpoints_are_not_counted(write_checkpoint: WriteCheckpoint, checkpoint_dir: Path) -> None:
    """A checkpoint that a full disk left half written never pushes out a good one."""
    first, second = write_checkpoint(4), write_checkpoint(8)
    for step in (12, 16):
        write_checkpoint(step, (1,))
    newest = write_checkpoint(20)
    keep_newest_checkpoints(newest, 3, frozenset())
    assert list_checkpoints(checkpoint_dir) == [first, second, newest]


def test_later_checkpoints_that_could_not_be_used_are_replaced(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path
) -> None:
    resumed_from = write_checkpoint(4, attempt="a")
    unusable = frozenset(write_checkpoint(step, attempt="f").name for step in (8, 12))
    # Not known when this attempt began: of a process that has taken over the run.
    other = write_checkpoint(16, attempt="c")
    again = write_checkpoint(8, attempt="b")
    keep_newest_checkpoints(again, 2, unusable)
    assert list_checkpoints(checkpoint_dir) == [resumed_from, again, other]


def test_uncommitted_checkpoints_are_removed(write_checkpoint: WriteCheckpoint, checkpoint_dir: Path) -> None:
    committed = write_checkpoint(4)
    write_checkpoint(8, (0,))
    (checkpoint_dir / "checkpoint-0000009-b").mkdir()
    assert recover_checkpoint_dir(checkpoint_dir) == []
    assert list(checkpoint_dir.iterdir()) == [committed]


def test_uncommitted_first_checkpoint_lets_the_run_start_over(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path
) -> None:
    write_checkpoint(4, (0,))
    assert recover_checkpoint_dir(checkpoint_dir) == []
    assert list(checkpoint_dir.iterdir()) == []


def test_corrupted_manifest_is_reported(write_checkpoint: WriteCheckpoint, checkpoint_dir: Path) -> None:
    intact, corrupted = write_checkpoint(4), write_checkpoint(8)
    manifest = corrupted / "manifest-00001.json"
    manifest.write_bytes(b"")
    assert recover_checkpoint_dir(checkpoint_dir) == [f"{manifest} is corrupted"]
    assert list(checkpoint_dir.iterdir()) == [intact]


@pytest.mark.parametrize("write", [write_record, write_ray_snapshot])
def test_missing_manifest_of_a_recorded_checkpoint_is_reported(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, write: Callable[..., None]
) -> None:
    intact, corrupted = write_checkpoint(4), write_checkpoint(8)
    (corrupted / "manifest-00001.json").unlink()
    write(checkpoint_dir, intact.name, corrupted.name)
    assert recover_checkpoint_dir(checkpoint_dir) == [f"{corrupted} has 1 shard manifest(s), not one of every worker"]
    # Ray Train would refuse to start from a list that it has not kept up to date.
    assert not (checkpoint_dir / RAY_SNAPSHOT).exists()
    assert find_committed(checkpoint_dir) == [intact]


def empty_manifests(checkpoint_dir: Path) -> None:
    for path in checkpoint_dir.glob("*/manifest-*.json"):
        path.write_bytes(b"")


def remove_manifests(checkpoint_dir: Path) -> None:
    for path in checkpoint_dir.glob("*/manifest-*.json"):
        path.unlink()


def remove_checkpoints(checkpoint_dir: Path) -> None:
    for path in checkpoint_dir.glob("checkpoint-*"):
        shutil.rmtree(path)


def remove_checkpoints_and_empty_record(checkpoint_dir: Path) -> None:
    remove_checkpoints(checkpoint_dir)
    (checkpoint_dir / RECORD_FILE).write_bytes(b"")


@pytest.mark.parametrize(
    ("destroy", "problem"),
    [
        (empty_manifests, "manifest-00000.json is corrupted"),
        (remove_manifests, "has 0 shard manifest(s), not one of every worker"),
        (remove_checkpoints, f"and 1 more, which {RECORD_FILE} lists, are gone"),
        (remove_checkpoints_and_empty_record, f"{RECORD_FILE} is corrupted"),
    ],
)
def test_run_that_lost_all_checkpoints_does_not_start_over(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, destroy: Callable[[Path], None], problem: str
) -> None:
    """F11: the user decides whether to give up the training so far, and nothing is removed before."""
    write_record(checkpoint_dir, *(write_checkpoint(step).name for step in (4, 8)))
    destroy(checkpoint_dir)
    files_before = sorted(checkpoint_dir.rglob("*"))
    with pytest.raises(InputError, match=f"none of the checkpoints in {checkpoint_dir} can be used") as raised:
        recover_checkpoint_dir(checkpoint_dir)
    assert problem in str(raised.value)
    assert f"remove {checkpoint_dir} to train from the beginning" in str(raised.value)
    assert sorted(checkpoint_dir.rglob("*")) == files_before


def test_missing_folder_needs_no_recovery(tmp_path: Path) -> None:
    assert recover_checkpoint_dir(tmp_path / "missing") == []


@pytest.mark.parametrize("has_record", [True, False])
def test_only_kept_checkpoints_are_left_at_the_end(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, has_record: bool
) -> None:
    """Without a record, because the disk was full when it should have been written, the newest are kept."""
    write_checkpoint(4, attempt="a")
    kept = [write_checkpoint(step, attempt="b") for step in (8, 12)]
    write_checkpoint(16, (0,), attempt="a")
    if has_record:
        write_record(checkpoint_dir, *(path.name for path in kept))
    delete_unreferenced(checkpoint_dir, num_checkpoints=2)
    assert list_checkpoints(checkpoint_dir) == kept
