"""Recovery of the checkpoint folder after a crash, and clean-up at the end of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from instruct_ray.errors import InputError
from instruct_ray.training.checkpoint.manifest import find_committed
from instruct_ray.training.checkpoint.recovery import RAY_SNAPSHOT, delete_unreferenced, recover_checkpoint_dir

WriteCheckpoint = Callable[..., Path]


def make_snapshot(*names: str, version: str = ray.__version__) -> str:
    return json.dumps({"ray_version": version, "checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


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


def test_missing_manifest_of_a_checkpoint_that_ray_lists_is_reported(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path
) -> None:
    intact, corrupted = write_checkpoint(4), write_checkpoint(8)
    (corrupted / "manifest-00001.json").unlink()
    (checkpoint_dir / RAY_SNAPSHOT).write_text(make_snapshot(intact.name, corrupted.name))
    assert recover_checkpoint_dir(checkpoint_dir) == [f"{corrupted} has 1 shard manifest(s), not one of every worker"]
    # The snapshot lists a checkpoint that is removed.
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


def remove_checkpoints_and_empty_snapshot(checkpoint_dir: Path) -> None:
    remove_checkpoints(checkpoint_dir)
    (checkpoint_dir / RAY_SNAPSHOT).write_bytes(b"")


@pytest.mark.parametrize(
    ("destroy", "problem"),
    [
        (empty_manifests, "manifest-00000.json is corrupted"),
        (remove_manifests, "has 0 shard manifest(s), not one of every worker"),
        (remove_checkpoints, "which is gone"),
        (remove_checkpoints_and_empty_snapshot, f"{RAY_SNAPSHOT} is corrupted"),
    ],
)
def test_run_that_lost_all_checkpoints_does_not_start_over(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, destroy: Callable[[Path], None], problem: str
) -> None:
    """F11: the user decides whether to give up the training so far, and nothing is removed before."""
    checkpoints = [write_checkpoint(step) for step in (4, 8)]
    (checkpoint_dir / RAY_SNAPSHOT).write_text(make_snapshot(*(path.name for path in checkpoints)))
    destroy(checkpoint_dir)
    files_before = sorted(checkpoint_dir.rglob("*"))
    with pytest.raises(InputError, match=f"none of the checkpoints in {checkpoint_dir} can be used") as raised:
        recover_checkpoint_dir(checkpoint_dir)
    assert problem in str(raised.value)
    assert f"remove {checkpoint_dir} to train from the beginning" in str(raised.value)
    assert sorted(checkpoint_dir.rglob("*")) == files_before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (make_snapshot("checkpoint-0000004-a"), None),
        ("", "is corrupted"),
        ('{"ray_version": ', "is corrupted"),
        ("[]", "is corrupted"),
        (make_snapshot("checkpoint-0000008-a"), "lists checkpoint-0000008-a, which is gone"),
        (
            make_snapshot("checkpoint-0000004-a", version="2.0.0"),
            f"was written by Ray 2.0.0, but Ray {ray.__version__} is installed",
        ),
    ],
)
def test_snapshot_that_ray_could_not_start_from_is_renamed(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, text: str, problem: str | None
) -> None:
    checkpoint, snapshot = write_checkpoint(4), checkpoint_dir / RAY_SNAPSHOT
    snapshot.write_text(text)
    unusable = snapshot.with_suffix(".unusable")
    messages = recover_checkpoint_dir(checkpoint_dir)
    assert messages == ([f"{snapshot} {problem}, so it was renamed to {unusable.name}"] if problem else [])
    assert snapshot.exists() is (problem is None)
    assert unusable.exists() is (problem is not None)
    assert find_committed(checkpoint_dir) == [checkpoint]


def test_missing_folder_needs_no_recovery(tmp_path: Path) -> None:
    assert recover_checkpoint_dir(tmp_path / "missing") == []


def test_only_checkpoints_that_ray_keeps_are_left_at_the_end(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path
) -> None:
    kept = [write_checkpoint(step, attempt="b") for step in (4, 8)]
    write_checkpoint(8, attempt="a")
    write_checkpoint(12, (0,), attempt="a")
    (checkpoint_dir / RAY_SNAPSHOT).write_text(make_snapshot(*(path.name for path in kept)))
    delete_unreferenced(checkpoint_dir)
    assert sorted(checkpoint_dir.glob("checkpoint-*")) == kept
