"""What is committed can be trusted, and what can't be trusted is not loaded."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from instruct_ray.errors import InputError
from instruct_ray.training.checkpoint import manifest as checkpoints
from instruct_ray.training.checkpoint.manifest import (
    checkpoint_dir_name,
    commit_shards,
    find_committed,
    find_corruption,
    load_manifest,
)
from instruct_ray.training.checkpoint.recovery import RAY_SNAPSHOT, delete_unreferenced, recover_checkpoint_dir


@pytest.fixture
def train(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    return folder


@pytest.fixture
def write(tmp_path: Path, train: Path) -> Callable[..., Path]:
    """Commit a checkpoint of two ranks, or of those named."""

    def make(step: int, ranks: tuple[int, ...] = (0, 1), attempt: str = "a") -> Path:
        folder = train / checkpoint_dir_name(step, attempt)
        for rank in ranks:
            local = tmp_path / f"local-{step}-{rank}-{attempt}"
            (local / f"step-{step:07d}").mkdir(parents=True)
            (local / f"step-{step:07d}" / f"shard-{rank}.pt").write_bytes(bytes([step, rank]) * 1000)
            commit_shards(local, folder, step, rank, 2, "digest")
        return folder

    return make


def test_what_is_committed_is_whole(write: Callable[..., Path], train: Path) -> None:
    folder = write(4)
    assert find_committed(train) == [folder]
    assert [find_corruption(folder, rank, 2) for rank in (0, 1)] == ["", ""]
    signature = load_manifest(folder)
    assert (signature.step, signature.world_size, signature.tag) == (4, 2, "step-0000004")
    assert (signature.contract_digest, list(signature.files)) == ("digest", ["step-0000004/shard-0.pt"])


def test_the_newest_comes_first(write: Callable[..., Path], train: Path) -> None:
    folders = [write(step) for step in (4, 12, 8)]
    assert find_committed(train) == [folders[1], folders[2], folders[0]]


def test_a_rank_that_has_not_signed_leaves_no_checkpoint(write: Callable[..., Path], train: Path) -> None:
    good = write(4)
    for step, ranks in ((8, (0,)), (12, (1,))):
        write(step, ranks)
    assert find_committed(train) == [good]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"x"), "has 1 bytes, not 2000"),
        (lambda path: path.write_bytes(b"x" * 2000), "holds other bytes than were written"),
    ],
)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_damaged_file_is_named(
    write: Callable[..., Path], spoil: Callable[[Path], None], problem: str, num_ranks: int
) -> None:
    folder = write(4)
    shard = folder / "step-0000004" / "shard-1.pt"
    spoil(shard)
    found = [find_corruption(folder, rank, num_ranks) for rank in range(num_ranks)]
    assert [text for text in found if text] == [f"{shard} {problem}"]


def test_what_was_never_committed_is_removed(write: Callable[..., Path], train: Path) -> None:
    good = write(4)
    write(8, (0,))
    (train / "checkpoint-0000009-b").mkdir()
    assert recover_checkpoint_dir(train) == []
    assert list(train.iterdir()) == [good]


def test_a_first_checkpoint_that_was_never_committed_is_no_progress(write: Callable[..., Path], train: Path) -> None:
    write(4, (0,))
    assert recover_checkpoint_dir(train) == []
    assert list(train.iterdir()) == []


def test_a_spoilt_signature_is_told(write: Callable[..., Path], train: Path) -> None:
    good, spoilt = write(4), write(8)
    signature = spoilt / "signature-00001.json"
    signature.write_bytes(b"")
    assert recover_checkpoint_dir(train) == [f"{signature} is damaged"]
    assert list(train.iterdir()) == [good]


def test_a_checkpoint_that_ray_knows_and_nobody_signed_for_is_told(write: Callable[..., Path], train: Path) -> None:
    good, spoilt = write(4), write(8)
    (spoilt / "signature-00001.json").unlink()
    (train / RAY_SNAPSHOT).write_text(snapshot(good.name, spoilt.name))
    assert recover_checkpoint_dir(train) == [f"{spoilt} has 1 signature(s), not one of every worker"]
    # It names what is removed.
    assert not (train / RAY_SNAPSHOT).exists()
    assert find_committed(train) == [good]


def empty_signatures(train: Path) -> None:
    for path in train.glob("*/signature-*.json"):
        path.write_bytes(b"")


def remove_signatures(train: Path) -> None:
    for path in train.glob("*/signature-*.json"):
        path.unlink()


def remove_checkpoints(train: Path) -> None:
    for path in train.glob("checkpoint-*"):
        shutil.rmtree(path)


def remove_checkpoints_and_empty_snapshot(train: Path) -> None:
    remove_checkpoints(train)
    (train / RAY_SNAPSHOT).write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (empty_signatures, "signature-00000.json is damaged"),
        (remove_signatures, "has 0 signature(s), not one of every worker"),
        (remove_checkpoints, "which is gone"),
        (remove_checkpoints_and_empty_snapshot, f"{RAY_SNAPSHOT} is damaged"),
    ],
)
def test_a_run_that_lost_all_its_checkpoints_never_begins_anew(
    write: Callable[..., Path], train: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    """F11: whoever has a week of training behind them decides, and nothing is removed before."""
    folders = [write(step) for step in (4, 8)]
    (train / RAY_SNAPSHOT).write_text(snapshot(*(path.name for path in folders)))
    spoil(train)
    left = sorted(train.rglob("*"))
    with pytest.raises(InputError, match=f"none of the checkpoints in {train} can be used") as raised:
        recover_checkpoint_dir(train)
    assert problem in str(raised.value)
    assert f"remove {train} to train from the beginning" in str(raised.value)
    assert sorted(train.rglob("*")) == left


def test_a_full_disk_says_what_is_needed_and_keeps_nothing_of_it(
    write: Callable[..., Path], train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10."""
    good = write(4)

    def full(path: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(checkpoints.shutil, "move", full)
    with pytest.raises(OSError, match=r"the disk is full: 0\.0 MiB needed, [\d,.]+ MiB free; make room"):
        write(8)
    assert not [path for path in train.rglob("*") if path.is_file() and good not in path.parents]
    assert [find_corruption(good, rank, 2) for rank in (0, 1)] == ["", ""]


def snapshot(*names: str, version: str = ray.__version__) -> str:
    return json.dumps({"ray_version": version, "checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (snapshot("checkpoint-0000004-a"), ""),
        ("", "is damaged"),
        ('{"ray_version": ', "is damaged"),
        ("[]", "is damaged"),
        (snapshot("checkpoint-0000008-a"), "names checkpoint-0000008-a, which is gone"),
        (snapshot("checkpoint-0000004-a", version="2.0.0"), f"is of Ray 2.0.0, this is {ray.__version__}"),
    ],
)
def test_a_snapshot_that_ray_would_stop_at_is_set_aside(
    write: Callable[..., Path], train: Path, text: str, problem: str
) -> None:
    good = write(4)
    (train / RAY_SNAPSHOT).write_text(text)
    found = recover_checkpoint_dir(train)
    assert len(found) == bool(problem)
    assert "".join(found) == (f"{train / RAY_SNAPSHOT} {problem}" if problem else "")
    assert (train / RAY_SNAPSHOT).exists() is not bool(problem)
    assert find_committed(train) == [good]


def test_nothing_to_tidy(tmp_path: Path) -> None:
    assert recover_checkpoint_dir(tmp_path / "none") == []


def test_at_the_end_only_what_ray_keeps_is_left(write: Callable[..., Path], train: Path) -> None:
    kept = [write(step, attempt="b") for step in (4, 8)]
    write(8, attempt="a")
    write(12, (0,), attempt="a")
    (train / RAY_SNAPSHOT).write_text(snapshot(*(path.name for path in kept)))
    delete_unreferenced(train)
    assert sorted(train.glob("checkpoint-*")) == kept
