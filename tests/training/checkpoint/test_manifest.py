"""Committing a checkpoint, and finding files that are corrupted."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.training.checkpoint import manifest as manifest_module
from instruct_ray.training.checkpoint.manifest import (
    ShardManifest,
    check_files,
    find_committed,
    find_corruption,
    load_manifest,
)

WriteCheckpoint = Callable[..., Path]


def test_committed_checkpoint_is_intact(write_checkpoint: WriteCheckpoint, checkpoint_dir: Path) -> None:
    checkpoint = write_checkpoint(4)
    assert find_committed(checkpoint_dir) == [checkpoint]
    assert [find_corruption(checkpoint, rank, 2) for rank in (0, 1)] == [None, None]
    manifest = load_manifest(checkpoint)
    assert (manifest.step, manifest.world_size, manifest.tag) == (4, 2, "step-0000004")
    assert (manifest.contract_digest, list(manifest.files)) == ("digest", ["step-0000004/shard-0.pt"])
    assert sorted(path.name for path in checkpoint.glob("*.json")) == ["manifest-00000.json", "manifest-00001.json"]


def test_newest_checkpoint_comes_first(write_checkpoint: WriteCheckpoint, checkpoint_dir: Path) -> None:
    checkpoints = [write_checkpoint(step) for step in (4, 12, 8)]
    assert find_committed(checkpoint_dir) == [checkpoints[1], checkpoints[2], checkpoints[0]]


def test_checkpoint_is_not_committed_until_all_ranks_are_done(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path
) -> None:
    committed = write_checkpoint(4)
    for step, ranks in ((8, (0,)), (12, (1,))):
        write_checkpoint(step, ranks)
    assert find_committed(checkpoint_dir) == [committed]


@pytest.mark.parametrize(
    ("corrupt", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"x"), "has 1 bytes, not 2000"),
        (lambda path: path.write_bytes(b"x" * 2000), "holds other bytes than were written"),
    ],
)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_corrupted_file_is_named(
    write_checkpoint: WriteCheckpoint, corrupt: Callable[[Path], None], problem: str, num_ranks: int
) -> None:
    checkpoint = write_checkpoint(4)
    shard = checkpoint / "step-0000004" / "shard-1.pt"
    corrupt(shard)
    problems = [find_corruption(checkpoint, rank, num_ranks) for rank in range(num_ranks)]
    assert [text for text in problems if text is not None] == [f"{shard} {problem}"]


def test_file_that_no_rank_wrote_or_that_was_changed_is_not_unpickled(write_checkpoint: WriteCheckpoint) -> None:
    checkpoint = write_checkpoint(4)
    names = [f"step-0000004/shard-{rank}.pt" for rank in (0, 1)]
    check_files(checkpoint, names)
    (checkpoint / names[1]).write_bytes(b"x" * 2000)
    check_files(checkpoint, names[:1])
    with pytest.raises(ValueError, match=r"shard-1\.pt holds other bytes than were written"):
        check_files(checkpoint, names)
    (checkpoint / "step-0000004" / "added.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"added\.pt is in no manifest"):
        check_files(checkpoint, ["step-0000004/added.pt"])


def test_full_disk_error_gives_the_space_needed_and_removes_the_shards(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10."""
    intact = write_checkpoint(4)

    def fail_half_way(path: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(manifest_module.shutil, "move", fail_half_way)
    with pytest.raises(OSError, match=r"the disk is full: 0\.0 MiB needed, [\d,.]+ MiB free; free some space"):
        write_checkpoint(8)
    assert not [path for path in checkpoint_dir.rglob("*") if path.is_file() and intact not in path.parents]
    assert [find_corruption(intact, rank, 2) for rank in (0, 1)] == [None, None]


def test_manifests_of_earlier_versions_say_that_all_weights_decay() -> None:
    earlier = {"step": 1, "rank": 0, "world_size": 1, "contract_digest": "digest", "files": {}}
    assert ShardManifest.model_validate(earlier).decays_all
    now = ShardManifest.model_validate(earlier | {"decays_all": False})
    assert not ShardManifest.model_validate_json(now.model_dump_json()).decays_all


def test_storage_that_fails_for_a_moment_is_tried_again(
    write_checkpoint: WriteCheckpoint, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, failures = manifest_module.shutil.move, [errno.ESTALE, errno.EIO]

    def fail_twice(path: Path, target: Path) -> None:
        if failures:
            raise OSError(failures.pop(), "Stale file handle", str(target))
        move(path, target)

    monkeypatch.setattr(manifest_module, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(manifest_module.shutil, "move", fail_twice)
    checkpoint = write_checkpoint(4)
    assert not failures
    assert find_committed(checkpoint_dir) == [checkpoint]
    assert find_corruption(checkpoint, 0, 1) is None
