"""Committed checkpoints: every rank puts its shards in place, then signs for them.

What not all ranks have signed for is no checkpoint, and what differs from what was signed is never loaded. Ray Train's
own commit copies file by file and later asks only whether the folder exists.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.run import write_text

SNAPSHOT = "checkpoint_manager_snapshot.json"
BLOCK_BYTES = 4 * 2**20


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
    """Move a rank's files into the checkpoint's folder and sign for them. Runs beside the training thread."""
    files: dict[str, Shard] = {}
    for path in sorted(path for path in shards.rglob("*") if path.is_file()):
        name = str(path.relative_to(shards))
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        files[name] = Shard(size=path.stat().st_size, sha256=_sha256(path))
        shutil.move(path, target)
        _to_disk(target)
    signature = Signature(step=step, rank=rank, world_size=world_size, contract_digest=contract_digest, files=files)
    write_text(folder / f"signature-{rank:05d}.json", signature.model_dump_json(indent=2) + "\n")


def find_signed(train: Path) -> list[Path]:
    """Checkpoints that all ranks have signed for, newest first."""
    return [path for path in sorted(train.glob("checkpoint-*"), reverse=True) if _is_signed(path)]


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


def tidy(train: Path) -> str:
    """Before Ray Train opens the folder of an earlier attempt: remove what was never committed, and set aside a
    snapshot that Ray would stop at. Returns what was wrong with that; empty if nothing."""
    for folder in train.glob("checkpoint-*"):
        if not _is_signed(folder):
            shutil.rmtree(folder)
    snapshot = train / SNAPSHOT
    if not snapshot.is_file():
        return ""
    try:
        problem = _missing(train, _named(snapshot))
    except ValueError as error:
        problem = str(error)
    if problem:
        snapshot.replace(snapshot.with_suffix(".set_aside"))
    return f"{snapshot} {problem}" if problem else ""


def prune(train: Path) -> None:
    """At the end of a run: remove what Ray Train does not count among the checkpoints it keeps, such as those of
    attempts that were killed."""
    named = _named(train / SNAPSHOT)
    for folder in train.glob("checkpoint-*"):
        if folder.name not in named:
            shutil.rmtree(folder)


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


def _missing(train: Path, names: list[str]) -> str:
    missing = [name for name in names if not (train / name).is_dir()]
    return f"names {missing[0]}, which is gone" if missing else ""


def _is_signed(folder: Path) -> bool:
    try:
        return all((folder / f"signature-{rank:05d}.json").is_file() for rank in range(signature_of(folder).world_size))
    except (OSError, ValidationError):
        return False


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
