"""Committed checkpoints: every rank puts its shards in place, then signs for them.

What not all ranks have signed for is no checkpoint, and what differs from what was signed is never loaded. Ray Train's
own commit copies file by file and later asks only whether the folder exists.
"""

import errno
import hashlib
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.files import atomic_write_text

BLOCK_BYTES = 4 * 2**20
# A disk, a quota or a file system that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ShardFile(BaseModel):
    """What a file held when it was signed for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class ShardManifest(BaseModel):
    """One rank's word that its shards are in place; `signature-RANK.json`, written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    rank: int
    world_size: int
    contract_digest: str
    files: dict[str, ShardFile]

    @property
    def tag(self) -> str:
        """DeepSpeed's folder within the checkpoint."""
        return step_tag(self.step)


def step_tag(step: int) -> str:
    """DeepSpeed's name for a checkpoint."""
    return f"step-{step:07d}"


def checkpoint_dir_name(step: int, attempt: str) -> str:
    """The folder of a checkpoint. No two attempts at a run share one, so what a killed one left is never mixed in."""
    return f"checkpoint-{step:07d}-{attempt}"


def commit_shards(shards: Path, folder: Path, step: int, rank: int, world_size: int, contract_digest: str) -> None:
    """Move a rank's files into the checkpoint's folder and sign for them. Runs beside the training thread.

    Raises:
        OSError: they can't be written; a full disk says what is needed, and none of them stays on it.
    """
    paths = sorted(path for path in shards.rglob("*") if path.is_file())
    needed = sum(path.stat().st_size for path in paths)
    try:
        files = {str(path.relative_to(shards)): _move(path, folder / path.relative_to(shards)) for path in paths}
        signature = ShardManifest(
            step=step, rank=rank, world_size=world_size, contract_digest=contract_digest, files=files
        )
        atomic_write_text(folder / f"signature-{rank:05d}.json", signature.model_dump_json(indent=2) + "\n")
    except OSError as error:
        if error.errno not in FULL:
            raise
        for path in paths:
            (folder / path.relative_to(shards)).unlink(missing_ok=True)
        text = disk_full_message(folder.parent, needed, shutil.disk_usage(folder.parent).free)
        raise OSError(error.errno, text) from error


def disk_full_message(folder: Path, needed: int, free: int) -> str:
    """What is said of a disk without room, in bytes."""
    return (
        f"{folder}: the disk is full: {needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free; make room, or "
        "lower train.num_checkpoints; the checkpoint before is untouched"
    )


def _move(path: Path, target: Path) -> ShardFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    shard = ShardFile(size=path.stat().st_size, sha256=_sha256(path))
    shutil.move(path, target)
    _to_disk(target)
    return shard


def find_committed(train: Path) -> list[Path]:
    """Checkpoints that all ranks have signed for, newest first."""
    return [path for path in sorted(train.glob("checkpoint-*"), reverse=True) if is_committed(path)]


def load_manifest(folder: Path, rank: int = 0) -> ShardManifest:
    """A rank's signature.

    Raises:
        OSError: there is none.
        ValueError: it is none.
    """
    return ShardManifest.model_validate_json((folder / f"signature-{rank:05d}.json").read_text())


def find_corruption(folder: Path, rank: int, num_ranks: int) -> str:
    """The first file that is not what was signed for, and how; empty if all are. Of `num_ranks` that look, each takes
    its share."""
    for signed in range(rank, load_manifest(folder).world_size, num_ranks):
        for name, shard in load_manifest(folder, signed).files.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != shard.size:
                return f"{path} has {path.stat().st_size} bytes, not {shard.size}"
            if _sha256(path) != shard.sha256:
                return f"{path} holds other bytes than were written"
    return ""


def is_committed(folder: Path) -> bool:
    """Whether all ranks have signed for it."""
    first = _read(folder / "signature-00000.json")
    return first is not None and all(_read(folder / f"signature-{r:05d}.json") for r in range(first.world_size))


def _read(path: Path) -> ShardManifest | None:
    try:
        return ShardManifest.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
