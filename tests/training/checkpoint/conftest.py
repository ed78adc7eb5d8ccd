"""Checkpoints of two ranks with tiny shards."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.training.checkpoint.manifest import ShardManifest, checkpoint_dir_name, commit_shards


@pytest.fixture
def checkpoint_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    return folder


@pytest.fixture
def write_checkpoint(tmp_path: Path, checkpoint_dir: Path) -> Callable[..., Path]:
    """Write the shards of some ranks of two, commit them, and return the checkpoint's folder."""

    def write(step: int, ranks: tuple[int, ...] = (0, 1), attempt: str = "a") -> Path:
        folder = checkpoint_dir / checkpoint_dir_name(step, attempt)
        for rank in ranks:
            local = tmp_path / f"local-{step}-{rank}-{attempt}"
            (local / f"step-{step:07d}").mkdir(parents=True)
            (local / f"step-{step:07d}" / f"shard-{rank}.pt").write_bytes(bytes([step, rank]) * 1000)
            commit_shards(
                local, folder, ShardManifest(step=step, rank=rank, world_size=2, contract_digest="digest", files={})
            )
        return folder

    return write
