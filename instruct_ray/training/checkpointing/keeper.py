"""Engine <-> checkpoints: saved without stopping the step, restored from the newest one that is whole."""

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from instruct_ray.errors import InputError
from instruct_ray.training.checkpointing.checkpoints import (
    Signature,
    commit,
    damage,
    disk_full,
    find_signed,
    lost,
    name_of,
    signature_of,
    tag_of,
)
from instruct_ray.training.checkpointing.universal import convert
from instruct_ray.training.ranks import from_rank_0
from instruct_ray.training.zero import ZeroEngine

# Among the checkpoints, while one is converted.
UNIVERSAL = ".universal"


@dataclass(frozen=True)
class Start:
    """Where a run continues."""

    step: int = 0
    """Steps done."""
    folder: Path | None = None
    """The checkpoint; None at the beginning."""
    is_universal: bool = False
    """Whether it was written by another number of ranks, and converted for any."""
    damaged: tuple[str, ...] = ()
    """What is wrong with newer ones."""


@dataclass(frozen=True)
class Saved:
    """What became of a checkpoint."""

    folder: Path | None
    """Where it will be once all ranks have signed for it; None if there is none."""
    problem: str = ""
    """Why there is none. Training can go on without: the one before stays."""


class Keeper:
    """Keeps the checkpoints of one rank; all ranks make the same calls, on the process group that Ray made."""

    def __init__(
        self, checkpoints: Path, contract_digest: str, rank: int, world_size: int, device: torch.device
    ) -> None:
        self._checkpoints, self._contract_digest, self._device = checkpoints, contract_digest, device
        self._rank, self._world_size = rank, world_size
        self._attempt = str(from_rank_0(uuid.uuid4().hex[:8], device))
        self._universal = checkpoints / UNIVERSAL
        # On this node's disk, in Ray's folder there: other runs may have ranks on the node.
        name = hashlib.sha256(str(checkpoints).encode()).hexdigest()[:12]
        self._local = Path.cwd() / f"shards-{name}-{rank}"
        shutil.rmtree(self._local, ignore_errors=True)

    def find_start(self, zero_stage: int) -> Start:
        """The newest checkpoint that is whole, converted if another number of ranks wrote it.

        Raises:
            InputError: it was trained on other tokens than the packs hold, or there are some and none is whole.
            RuntimeError: it can't be converted.
        """
        damaged: list[str] = []
        for folder in from_rank_0(find_signed(self._checkpoints), self._device):
            found: list[str] = [""] * self._world_size
            dist.all_gather_object(found, damage(folder, self._rank, self._world_size))
            if problem := next(filter(None, found), ""):
                damaged.append(problem)
                continue
            signature = signature_of(folder)
            self._check_contract(folder, signature)
            # Without sharding every rank's state is the same.
            is_universal = signature.world_size != self._world_size and zero_stage > 0
            if is_universal:
                self._convert(folder, signature.tag)
            return Start(signature.step, self._universal if is_universal else folder, is_universal, tuple(damaged))
        if damaged:
            raise lost(self._checkpoints, damaged)
        return Start()

    def restore(self, engine: ZeroEngine, start: Start) -> None:
        """Load the checkpoint into an engine made for it."""
        if start.folder is None:
            return
        engine.load(start.folder, tag_of(start.step))
        dist.barrier()
        if start.is_universal and self._rank == 0:
            shutil.rmtree(self._universal)

    def save(self, engine: ZeroEngine, step: int, metrics: dict[str, float]) -> Saved:
        """Write this rank's shards to its own disk; they travel and are signed for beside the steps that follow."""
        name = name_of(step, self._attempt)
        shards = self._local / tag_of(step)
        engine.save(shards, tag_of(step))
        if shortage := self._shortage(shards):
            shutil.rmtree(shards)
            return Saved(None, f"no checkpoint at step {step}: {shortage}")

        def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            folder = self._checkpoints / name
            commit(Path(local.path), folder, step, self._rank, self._world_size, self._contract_digest)
            return ray.train.Checkpoint.from_directory(folder)

        ray.train.report(
            metrics | {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(shards),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
        return Saved(self._checkpoints / name)

    def _shortage(self, shards: Path) -> str:
        """What the shards of all ranks need and the storage has not, the same on every rank; empty if it has."""
        num_bytes = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
        # Negative, so that one maximum finds the smallest.
        found = torch.tensor([num_bytes, -shutil.disk_usage(self._checkpoints).free], device=self._device)
        dist.all_reduce(found[:1])
        dist.all_reduce(found[1:], op=dist.ReduceOp.MAX)
        needed, free = int(found[0]), -int(found[1])
        return "" if needed <= free else disk_full(self._checkpoints, needed, free)

    def _check_contract(self, folder: Path, signature: Signature) -> None:
        if signature.contract_digest != self._contract_digest:
            raise InputError(
                f"{folder} follows contract {signature.contract_digest[:12]}, the packs "
                f"{self._contract_digest[:12]}; take another run.name"
            )

    def _convert(self, folder: Path, tag: str) -> None:
        """One rank converts, all learn how it went."""
        problem = ""
        if self._rank == 0:
            try:
                convert(folder, tag, self._universal)
            except RuntimeError as error:
                problem = str(error)
        if problem := from_rank_0(problem, self._device):
            raise RuntimeError(problem)
