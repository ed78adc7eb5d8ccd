"""worker, all ranks: commits the shards of a checkpoint. Every rank moves its files, then writes a shard manifest.

A checkpoint without the manifests of all ranks is not committed, and a file that differs from its manifest is never
loaded. (Ray Train's own commit copies file by file, and later checks only that the folder exists.) The driver and the
validation task read the manifests.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from instruct_ray.files import DISK_FULL_ERRORS, TRANSIENT_ERRORS, atomic_write_text, sha256_file

MANIFEST_PATTERN = "manifest-*.json"
# How long to wait before each further attempt on a storage that fails for a moment.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)

Result = TypeVar("Result")


class ShardFile(BaseModel):
    """Size and digest of one file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class ShardManifest(BaseModel):
    """The files that one rank has written to a checkpoint; `manifest-RANK.json`, written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    rank: int
    world_size: int
    contract_digest: str
    files: dict[str, ShardFile]
    """By path within the checkpoint."""
    decays_all: bool = True
    """Whether weight decay includes norms and biases. Without this key, an earlier version wrote it, where it did."""

    @property
    def tag(self) -> str:
        """DeepSpeed's folder within the checkpoint."""
        return step_tag(self.step)


def step_tag(step: int) -> str:
    """DeepSpeed's name for the state after a step."""
    return f"step-{step:07d}"


def checkpoint_dir_name(step: int, attempt: str) -> str:
    """The name of a checkpoint's folder. It differs between attempts, so a killed attempt leaves no files in it."""
    return f"checkpoint-{step:07d}-{attempt}"


def commit_shards(shards: Path, folder: Path, manifest: ShardManifest) -> None:
    """Move a rank's files into the checkpoint's folder and write its manifest. Runs in a thread of its own.

    `manifest` is complete but for the files.

    Raises:
        OSError: they can't be written. If the disk is full, the message gives the space needed, and this rank's files
            are removed from it.
    """
    paths = sorted(path for path in shards.rglob("*") if path.is_file())
    needed = sum(path.stat().st_size for path in paths)
    try:
        files = {str(path.relative_to(shards)): _move(path, folder / path.relative_to(shards)) for path in paths}
        text = manifest.model_copy(update={"files": files}).model_dump_json(indent=2) + "\n"
        _retry(lambda: atomic_write_text(_manifest_file(folder, manifest.rank), text))
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        for path in paths:
            (folder / path.relative_to(shards)).unlink(missing_ok=True)
        message = disk_full_message(folder.parent, needed, shutil.disk_usage(folder.parent).free)
        raise OSError(error.errno, message) from error


def disk_full_message(folder: Path, needed: int, free: int) -> str:
    """The message for a disk without room for a checkpoint; both sizes are in bytes."""
    return (
        f"{folder}: the disk is full: {needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free; free some space, "
        "or lower train.num_checkpoints; the previous checkpoint is intact"
    )


def find_committed(checkpoint_dir: Path) -> list[Path]:
    """The committed checkpoints in a folder, newest first."""
    return [path for path in sorted(checkpoint_dir.glob("checkpoint-*"), reverse=True) if is_committed(path)]


def is_committed(checkpoint: Path) -> bool:
    """Whether the manifests of all ranks are there."""
    first = try_load_manifest(_manifest_file(checkpoint, 0))
    if first is None:
        return False
    return all(try_load_manifest(_manifest_file(checkpoint, rank)) for rank in range(first.world_size))


def load_manifest(checkpoint: Path, rank: int = 0) -> ShardManifest:
    """Load the manifest of a rank.

    Raises:
        OSError: there is none.
        ValueError: it is corrupted.
    """
    return ShardManifest.model_validate_json(_manifest_file(checkpoint, rank).read_text())


def try_load_manifest(path: Path) -> ShardManifest | None:
    """Load a manifest by its path; None if it is missing or corrupted."""
    try:
        return ShardManifest.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None


def find_corruption(checkpoint: Path, rank: int, num_ranks: int) -> str | None:
    """Describe the first file of a checkpoint that differs from its manifest; None if no file does.

    The work is divided over `num_ranks` ranks: each checks the shards of some of the ranks that wrote the checkpoint.
    """
    for writer in range(rank, load_manifest(checkpoint).world_size, num_ranks):
        for name, shard in load_manifest(checkpoint, writer).files.items():
            if problem := _find_difference(checkpoint / name, shard):
                return problem
    return None


def check_files(checkpoint: Path, names: Sequence[str]) -> None:
    """Check that files of a committed checkpoint are those that its ranks wrote, before they are unpickled.

    Raises:
        ValueError: a file differs from its manifest, or no manifest lists it.
    """
    shards: dict[str, ShardFile] = {}
    for rank in range(load_manifest(checkpoint).world_size):
        shards |= load_manifest(checkpoint, rank).files
    for name in names:
        path = checkpoint / name
        problem = _find_difference(path, shards[name]) if name in shards else f"{path} is in no manifest"
        if problem:
            raise ValueError(problem)


def _find_difference(path: Path, shard: ShardFile) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != shard.size:
        return f"{path} has {path.stat().st_size} bytes, not {shard.size}"
    if sha256_file(path) != shard.sha256:
        return f"{path} holds other bytes than were written"
    return None


def _manifest_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"manifest-{rank:05d}.json"


def _move(path: Path, target: Path) -> ShardFile:
    shard = ShardFile(size=path.stat().st_size, sha256=sha256_file(path))
    _retry(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    # A move that fails leaves its source.
    _retry(lambda: shutil.move(path, target))
    _retry(lambda: _sync_to_disk(target))
    return shard


def _retry(function: Callable[[], Result]) -> Result:
    """Call a function again, after some seconds, if the storage fails for a moment."""
    for seconds in RETRY_SECONDS:
        try:
            return function()
        except OSError as error:
            if error.errno not in TRANSIENT_ERRORS:
                raise
            time.sleep(seconds)
    return function()


def _sync_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
