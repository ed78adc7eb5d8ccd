"""worker, all ranks: saves checkpoints in the background, and restores the newest one that is intact."""

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
from instruct_ray.training.distributed.collectives import broadcast_object, gather_objects
from instruct_ray.training.distributed.engine import DeepSpeedEngine

# Beside the checkpoints: holds a converted one until it is loaded.
UNIVERSAL_DIR = ".universal"


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes."""

    step: int = 0
    """Number of steps that are done."""
    folder: Path | None = None
    """The checkpoint to load; None if training starts from the beginning."""
    is_universal: bool = False
    """Whether `folder` is a universal checkpoint, converted because another number of ranks wrote it."""
    corrupted: tuple[str, ...] = ()
    """What is wrong with newer checkpoints."""


@dataclass(frozen=True)
class SaveResult:
    """The result of saving a checkpoint."""

    folder: Path | None
    """The checkpoint once all ranks have committed it; None if it could not be saved."""
    problem: str | None = None
    """Why it could not be saved. Training can go on without it: the previous checkpoint is intact."""


class Checkpointer:
    """Saves and restores one rank's part of the checkpoints. Every public method is collective."""

    def __init__(
        self, checkpoint_dir: Path, contract_digest: str, rank: int, world_size: int, device: torch.device
    ) -> None:
        self._checkpoint_dir, self._contract_digest, self._device = checkpoint_dir, contract_digest, device
        self._rank, self._world_size = rank, world_size
        self._attempt = str(broadcast_object(uuid.uuid4().hex[:8], device))
        self._universal = checkpoint_dir / UNIVERSAL_DIR
        # On this node's disk, in Ray's folder there. The name is unique: other runs may have ranks on the same node.
        name = hashlib.sha256(str(checkpoint_dir).encode()).hexdigest()[:12]
        self._local = Path.cwd() / f"shards-{name}-{rank}"
        shutil.rmtree(self._local, ignore_errors=True)

    def find_resume_point(self, zero_stage: int) -> ResumePoint:
        """Find the newest intact checkpoint, and convert it if another number of ranks wrote it.

        Raises:
            InputError: it was trained on packs of another contract, or there are checkpoints and none is intact.
            RuntimeError: it can't be converted.
        """
        corrupted: list[str] = []
        for folder in broadcast_object(find_committed(self._checkpoint_dir), self._device):
            if problem := self._find_corruption(folder):
                corrupted.append(problem)
                continue
            manifest = load_manifest(folder)
            self._check_contract(folder, manifest)
            # Without sharding every rank has the same state, so any number of ranks can load it.
            is_universal = manifest.world_size != self._world_size and zero_stage > 0
            if is_universal:
                self._convert(folder, manifest.tag)
            return ResumePoint(
                manifest.step, self._universal if is_universal else folder, is_universal, tuple(corrupted)
            )
        if corrupted:
            raise no_usable_checkpoint_error(self._checkpoint_dir, corrupted)
        return ResumePoint()

    def restore(self, engine: DeepSpeedEngine, resume_point: ResumePoint) -> None:
        """Load the checkpoint of a resume point, if it has one, into an engine that was built for it."""
        if resume_point.folder is None:
            return
        engine.load(resume_point.folder, step_tag(resume_point.step))
        dist.barrier()
        if resume_point.is_universal and self._rank == 0:
            shutil.rmtree(self._universal)

    def save(self, engine: DeepSpeedEngine, step: int, metrics: dict[str, float]) -> SaveResult:
        """Write this rank's shards to its local disk; they are moved and committed while the next steps run."""
        name = checkpoint_dir_name(step, self._attempt)
        shards = self._local / step_tag(step)
        engine.save(shards, step_tag(step))
        if shortage := self._find_disk_shortage(shards):
            shutil.rmtree(shards)
            return SaveResult(None, f"no checkpoint at step {step}: {shortage}")

        def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            folder = self._checkpoint_dir / name
            commit_shards(Path(local.path), folder, step, self._rank, self._world_size, self._contract_digest)
            return ray.train.Checkpoint.from_directory(folder)

        ray.train.report(
            metrics | {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(shards),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
        return SaveResult(self._checkpoint_dir / name)

    def _find_corruption(self, folder: Path) -> str | None:
        """The first problem that a rank finds, the same on every rank."""
        problems = gather_objects(find_corruption(folder, self._rank, self._world_size))
        return next((problem for problem in problems if problem is not None), None)

    def _find_disk_shortage(self, shards: Path) -> str | None:
        """Why the storage has no room for the shards of all ranks, the same on every rank; None if it has."""
        num_bytes = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
        # The free space is negated, so that the maximum over the ranks finds the smallest.
        sizes = torch.tensor([num_bytes, -shutil.disk_usage(self._checkpoint_dir).free], device=self._device)
        dist.all_reduce(sizes[:1])
        dist.all_reduce(sizes[1:], op=dist.ReduceOp.MAX)
        needed, free = int(sizes[0]), -int(sizes[1])
        return None if needed <= free else disk_full_message(self._checkpoint_dir, needed, free)

    def _check_contract(self, folder: Path, manifest: ShardManifest) -> None:
        if manifest.contract_digest != self._contract_digest:
            raise InputError(
                f"{folder} follows contract {manifest.contract_digest[:12]}, the packs follow contract "
                f"{self._contract_digest[:12]}; use another run.name"
            )

    def _convert(self, folder: Path, tag: str) -> None:
        """Convert a checkpoint on rank 0; all ranks raise if that fails."""
        problem = None
        if self._rank == 0:
            try:
                convert_to_universal(folder, tag, self._universal)
            except RuntimeError as error:
                problem = str(error)
        if problem := broadcast_object(problem, self._device):
            raise RuntimeError(problem)
