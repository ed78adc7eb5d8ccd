"""Committed checkpoints: every rank puts its shards in place, then signs for them.

What not all ranks have signed for is no checkpoint, and what differs from what was signed is never loaded. Ray Train's
own commit copies file by file and later asks only whether the folder exists.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict

from instruct_ray.errors import InputError
from instruct_ray.run import write_text

SNAPSHOT = "checkpoint_manager_snapshot.json"
BLOCK_BYTES = 4 * 2**20
# A disk, a quota or a file system that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Shard(BaseModel):
    """What a file held when it was signed for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class Signature(BaseModel):
    """One rank's word that its shards are in place; `signature-RANK.json`, written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    rank: int
    world_size: int
    contract_digest: str
    files: dict[str, Shard]

    @property
    def tag(self) -> str:
        """DeepSpeed's folder within the checkpoint."""
        return tag_of(self.step)


def tag_of(step: int) -> str:
    """DeepSpeed's name for a checkpoint."""
    return f"step-{step:07d}"


def name_of(step: int, attempt: str) -> str:
    """The folder of a checkpoint. No two attempts at a run share one, so what a killed one left is never mixed in."""
    return f"checkpoint-{step:07d}-{attempt}"


def commit(shards: Path, folder: Path, step: int, rank: int, world_size: int, contract_digest: str) -> None:
    """Move a rank's files into the checkpoint's folder and sign for them. Runs beside the training thread.

    Raises:
        OSError: they can't be written; a full disk says what is needed, and none of them stays on it.
    """
    paths = sorted(path for path in shards.rglob("*") if path.is_file())
    needed = sum(path.stat().st_size for path in paths)
    try:
        files = {str(path.relative_to(shards)): _move(path, folder / path.relative_to(shards)) for path in paths}
        signature = Signature(step=step, rank=rank, world_size=world_size, contract_digest=contract_digest, files=files)
        write_text(folder / f"signature-{rank:05d}.json", signature.model_dump_json(indent=2) + "\n")
    except OSError as error:
        if error.errno not in FULL:
            raise
        for path in paths:
            (folder / path.relative_to(shards)).unlink(missing_ok=True)
        text = disk_full(folder.parent, needed, shutil.disk_usage(folder.parent).free)
        raise OSError(error.errno, text) from error


def disk_full(folder: Path, needed: int, free: int) -> str:
    """What is said of a disk without room, in bytes."""
    return (
        f"{folder}: the disk is full: {needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free; make room, or "
        "lower train.num_checkpoints; the checkpoint before is untouched"
    )


def _move(path: Path, target: Path) -> Shard:
    target.parent.mkdir(parents=True, exist_ok=True)
    shard = Shard(size=path.stat().st_size, sha256=_sha256(path))
    shutil.move(path, target)
    _to_disk(target)
    return shard


def find_signed(train: Path) -> list[Path]:
    """Checkpoints that all ranks have signed for, newest first."""
    return [path for path in sorted(train.glob("checkpoint-*"), reverse=True) if is_signed(path)]


def signature_of(folder: Path, rank: int = 0) -> Signature:
    """A rank's signature.

    Raises:
        OSError: there is none.
        ValueError: it is none.
    """
    return Signature.model_validate_json((folder / f"signature-{rank:05d}.json").read_text())


def damage(folder: Path, rank: int, num_ranks: int) -> str:
    """The first file that is not what was signed for, and how; empty if all are. Of `num_ranks` that look, each takes
    its share."""
    for signed in range(rank, signature_of(folder).world_size, num_ranks):
        for name, shard in signature_of(folder, signed).files.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != shard.size:
                return f"{path} has {path.stat().st_size} bytes, not {shard.size}"
            if _sha256(path) != shard.sha256:
                return f"{path} holds other bytes than were written"
    return ""


def tidy(train: Path) -> list[str]:
    """Before Ray Train opens the folder of an earlier attempt: remove what was never committed, and set aside a
    snapshot that Ray would stop at. Returns what was wrong with what had been committed.

    Raises:
        InputError: checkpoints had been committed, and none of them is left; nothing is touched.
    """
    snapshot, signed = train / SNAPSHOT, find_signed(train)
    named, problem = _known(train)
    unsigned = [folder for folder in sorted(train.glob("checkpoint-*")) if folder not in signed]
    spoilt = [text for folder in unsigned if (text := _spoilt(folder, named))]
    # Ray writes it when the first checkpoint is there.
    if not signed and (spoilt or snapshot.is_file()):
        raise lost(train, spoilt or [f"{snapshot} {problem}"])
    for folder in unsigned:
        shutil.rmtree(folder)
    if problem or spoilt:
        with suppress(FileNotFoundError):
            snapshot.replace(snapshot.with_suffix(".set_aside"))
    return [*spoilt, *([f"{snapshot} {problem}"] if problem else [])]


def lost(train: Path, problems: Sequence[str]) -> InputError:
    """What a run says that was trained before and has no checkpoint to continue from: it never begins anew unasked."""
    return InputError(
        f"none of the checkpoints in {train} can be used: {'; '.join(problems)}. Put back what is missing, or remove "
        f"{train} to train from the beginning"
    )


def prune(train: Path) -> None:
    """At the end of a run: remove what Ray Train does not count among the checkpoints it keeps, such as those of
    attempts that were killed."""
    named = _named(train / SNAPSHOT)
    for folder in train.glob("checkpoint-*"):
        if folder.name not in named:
            shutil.rmtree(folder)


def _known(train: Path) -> tuple[list[str], str]:
    """(the checkpoints that Ray Train knows, what it would stop at; empty if nothing)"""
    snapshot = train / SNAPSHOT
    if not snapshot.is_file():
        return [], ""
    try:
        names = _named(snapshot)
    except ValueError as error:
        return [], str(error)
    gone = [name for name in names if not (train / name).is_dir()]
    return names, f"names {gone[0]}, which is gone" if gone else "" if names else "names no checkpoint"


def _named(snapshot: Path) -> list[str]:
    """The checkpoints that Ray Train knows.

    Raises:
        ValueError: it would not understand the file.
    """
    try:
        state: dict[str, Any] = json.loads(snapshot.read_text())
        names = [str(each["checkpoint_dir_name"]) for each in state["checkpoint_results"]]
        version = state["ray_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("is damaged") from None
    if version != ray.__version__:
        raise ValueError(f"is of Ray {version}, this is {ray.__version__}")
    return names


def _spoilt(folder: Path, named: Sequence[str]) -> str:
    """What happened to a checkpoint that had been committed: Ray knows it, or a signature is there and can't be read,
    which is written whole or not at all. Empty of a folder that never was one."""
    signatures = sorted(folder.glob("signature-*.json"))
    damaged = [path for path in signatures if _read(path) is None]
    if damaged:
        return f"{damaged[0]} is damaged"
    if folder.name in named:
        return f"{folder} has {len(signatures)} signature(s), not one of every worker"
    return ""


def is_signed(folder: Path) -> bool:
    """Whether all ranks have signed for it."""
    first = _read(folder / "signature-00000.json")
    return first is not None and all(_read(folder / f"signature-{r:05d}.json") for r in range(first.world_size))


def _read(path: Path) -> Signature | None:
    try:
        return Signature.model_validate_json(path.read_text())
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
