"""Checkpoints are committed in the background; a full, slow or failing storage costs a checkpoint, and no step."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from instruct_ray.training.checkpoint import checkpointer as checkpointer_module
from instruct_ray.training.checkpoint.checkpointer import Checkpointer, CommittedCheckpoint
from instruct_ray.training.checkpoint.manifest import find_committed, find_corruption
from instruct_ray.training.checkpoint.recovery import recover_checkpoint_dir
from tests.small_disk import NoSmallDiskError, fill_disk, small_disk

SHARD_BYTES = 2**16


def ignore(checkpoint: CommittedCheckpoint) -> None:
    """Do nothing about a committed checkpoint."""


class ShardEngine:
    """Writes one shard, as an engine on one rank does."""

    decays_all = False

    def save(self, folder: Path, tag: str) -> None:
        (folder / tag).mkdir(parents=True)
        (folder / tag / "shard.pt").write_bytes(b"x" * SHARD_BYTES)


@pytest.fixture(autouse=True)
def single_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Shards are written to the working directory first.
    (tmp_path / "local").mkdir()
    monkeypatch.chdir(tmp_path / "local")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def make_checkpointer() -> Callable[[Path], Any]:
    def make(checkpoint_dir: Path) -> Checkpointer:
        return Checkpointer(checkpoint_dir, "digest", 2, 0, 1, torch.device("cpu"))

    return make


def list_steps(checkpoint_dir: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in find_committed(checkpoint_dir)]


def test_newest_checkpoints_are_kept(checkpoint_dir: Path, make_checkpointer: Callable[[Path], Checkpointer]) -> None:
    checkpointer = make_checkpointer(checkpoint_dir)
    committed: list[CommittedCheckpoint] = []
    for step in (4, 8, 12):
        assert checkpointer.save(ShardEngine(), step, committed.append).problem is None
        assert checkpointer.finish() is None
    assert [checkpoint.step for checkpoint in committed] == [4, 8, 12]
    assert all(0 < checkpoint.save_seconds < checkpoint.commit_seconds < 60 for checkpoint in committed)
    assert list_steps(checkpoint_dir)[:2] == [12, 8]
    resumed = make_checkpointer(checkpoint_dir)
    assert resumed.find_resume_point(1).step == 12


def test_full_disk_costs_a_checkpoint_and_the_one_before_stays(
    tmp_path: Path, make_checkpointer: Callable[[Path], Checkpointer]
) -> None:
    try:
        with small_disk(tmp_path / "storage", 8 * SHARD_BYTES) as checkpoint_dir:
            checkpointer = make_checkpointer(checkpoint_dir)
            checkpointer.save(ShardEngine(), 4, ignore)
            assert checkpointer.finish() is None
            filler = fill_disk(checkpoint_dir)
            saved = checkpointer.save(ShardEngine(), 8, ignore)
            assert saved.folder is None
            assert saved.problem is not None
            assert saved.problem.startswith(
                f"no checkpoint at step 8: {checkpoint_dir}: the disk is full: 0.1 MiB needed"
            )
            assert list_steps(checkpoint_dir) == [4]
            filler.unlink()
            assert checkpointer.save(ShardEngine(), 12, ignore).problem is None
            assert checkpointer.finish() is None
            assert list_steps(checkpoint_dir)[0] == 12
            assert recover_checkpoint_dir(checkpoint_dir) == []
    except NoSmallDiskError as error:
        pytest.skip(str(error))


def test_disk_that_becomes_full_during_the_write_costs_a_checkpoint(
    tmp_path: Path, make_checkpointer: Callable[[Path], Checkpointer], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_shards = checkpointer_module.commit_shards
    try:
        with small_disk(tmp_path / "storage", 8 * SHARD_BYTES) as checkpoint_dir:
            checkpointer = make_checkpointer(checkpoint_dir)
            checkpointer.save(ShardEngine(), 4, ignore)
            assert checkpointer.finish() is None

            def fill_and_commit(*inputs: Any) -> None:
                fill_disk(checkpoint_dir)
                commit_shards(*inputs)

            monkeypatch.setattr(checkpointer_module, "commit_shards", fill_and_commit)
            assert checkpointer.save(ShardEngine(), 8, ignore).problem is None
            lost = checkpointer.finish()
            assert lost is not None
            assert lost.step == 8
            assert lost.message.startswith("the checkpoint of step 8 was not written: ")
            assert "the disk is full: 0.1 MiB needed, 0.0 MiB free" in lost.message
            [intact] = find_committed(checkpoint_dir)
            assert find_corruption(intact, 0, 1) is None
            assert not list(Path.cwd().rglob("*.pt"))
    except NoSmallDiskError as error:
        pytest.skip(str(error))


def test_slow_storage_costs_the_checkpoints_that_would_wait_for_it(
    checkpoint_dir: Path, make_checkpointer: Callable[[Path], Checkpointer], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, commit_shards = threading.Event(), checkpointer_module.commit_shards

    def commit_slowly(*inputs: Any) -> None:
        answers.wait()
        commit_shards(*inputs)

    monkeypatch.setattr(checkpointer_module, "commit_shards", commit_slowly)
    monkeypatch.setattr(checkpointer_module, "WAIT_SECONDS", 0.1)
    checkpointer = make_checkpointer(checkpoint_dir)
    assert checkpointer.save(ShardEngine(), 4, ignore).problem is None
    assert checkpointer.settle() is None
    saved = checkpointer.save(ShardEngine(), 8, ignore)
    assert saved.problem == f"no checkpoint at step 8: that of step 4 is still being written to {checkpoint_dir}"
    answers.set()
    assert checkpointer.finish() is None
    assert list_steps(checkpoint_dir) == [4]
