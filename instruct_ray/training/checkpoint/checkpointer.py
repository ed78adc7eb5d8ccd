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
from instruct_ray.training.checkpoint.manifest import (
    ShardManifest,
    checkpoint_dir_name,
    commit_shards,
    disk_full_message,
    find_committed,
    find_corruption,
    load_manifest,
    step_tag,
)
from instruct_ray.training.checkpoint.recovery import no_usable_checkpoint_error
from instruct_ray.training.checkpoint.reshard import convert_to_universal
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.distributed.engine import DeepSpeedEngine

# Among the checkpoints, while one is converted.
UNIVERSAL = ".universal"


@dataclass(frozen=True)
class ResumePoint:
    """Where a run continues."""

    step: int = 0
    """Steps done."""
    folder: Path | None = None
    """The checkpoint; None at the beginning."""
    is_universal: bool = False
    """Whether it was written by another number of ranks, and converted for any."""
    corrupted: tuple[str, ...] = ()
    """What is wrong with newer ones."""


@dataclass(frozen=True)
class SaveResult:
    """What became of a checkpoint."""

    folder: Path | None
    """Where it will be once all ranks have signed for it; None if there is none."""
    problem: str = ""
    """Why there is none. Training can go on without: the one before stays."""


class Checkpointer:
    """Keeps the checkpoints of one rank; all ranks make the same calls, on the process group that Ray made."""

    def __init__(
        self, checkpoints: Path, contract_digest: str, rank: int, world_size: int, device: torch.device
    ) -> None:
        self._checkpoints, self._contract_digest, self._device = checkpoints, contract_digest, device
        self._rank, self._world_size = rank, world_size
        self._attempt = str(broadcast_object(uuid.uuid4().hex[:8], device))
        self._universal = checkpoints / UNIVERSAL
        # On this node's disk, in Ray's folder there: other runs may have ranks on the node.
        name = hashlib.sha256(str(checkpoints).encode()).hexdigest()[:12]
        self._local = Path.cwd() / f"shards-{name}-{rank}"
        shutil.rmtree(self._local, ignore_errors=True)

    def find_resume_point(self, zero_stage: int) -> ResumePoint:
        """The newest checkpoint that is whole, converted if another number of ranks wrote it.

        Raises:
            InputError: it was trained on other tokens than the packs hold, or there are some and none is whole.
            RuntimeError: it can't be converted.
        """
        corrupted: list[str] = []
        for folder in broadcast_object(find_committed(self._checkpoints), self._device):
            found: list[str] = [""] * self._world_size
            dist.all_gather_object(found, find_corruption(folder, self._rank, self._world_size))
            if problem := next(filter(None, found), ""):
                corrupted.append(problem)
                continue
            signature = load_manifest(folder)
            self._check_contract(folder, signature)
            # Without sharding every rank's state is the same.
            is_universal = signature.world_size != self._world_size and zero_stage > 0
            if is_universal:
                self._convert(folder, signature.tag)
            return ResumePoint(
                signature.step, self._universal if is_universal else folder, is_universal, tuple(corrupted)
            )
        if corrupted:
            raise no_usable_checkpoint_error(self._checkpoints, corrupted)
        return ResumePoint()

    def restore(self, engine: DeepSpeedEngine, start: ResumePoint) -> None:
        """Load the checkpoint into an engine made for it."""
        if start.folder is None:
            return
        engine.load(start.folder, step_tag(start.step))
        dist.barrier()
        if start.is_universal and self._rank == 0:
            shutil.rmtree(self._universal)

    def save(self, engine: DeepSpeedEngine, step: int, metrics: dict[str, float]) -> SaveResult:
        """Write this rank's shards to its own disk; they travel and are signed for beside the steps that follow."""
        name = checkpoint_dir_name(step, self._attempt)
        shards = self._local / step_tag(step)
        engine.save(shards, step_tag(step))
        if shortage := self._shortage(shards):
            shutil.rmtree(shards)
            return SaveResult(None, f"no checkpoint at step {step}: {shortage}")

        def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            folder = self._checkpoints / name
            commit_shards(Path(local.path), folder, step, self._rank, self._world_size, self._contract_digest)
            return ray.train.Checkpoint.from_directory(folder)

        ray.train.report(
            metrics | {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(shards),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
        return SaveResult(self._checkpoints / name)

    def _shortage(self, shards: Path) -> str:
        """What the shards of all ranks need and the storage has not, the same on every rank; empty if it has."""
        num_bytes = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
        # Negative, so that one maximum finds the smallest.
        found = torch.tensor([num_bytes, -shutil.disk_usage(self._checkpoints).free], device=self._device)
        dist.all_reduce(found[:1])
        dist.all_reduce(found[1:], op=dist.ReduceOp.MAX)
        needed, free = int(found[0]), -int(found[1])
        return "" if needed <= free else disk_full_message(self._checkpoints, needed, free)

    def _check_contract(self, folder: Path, signature: ShardManifest) -> None:
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
                convert_to_universal(folder, tag, self._universal)
            except RuntimeError as error:
                problem = str(error)
        if problem := broadcast_object(problem, self._device):
            raise RuntimeError(problem)
