"""worker, all ranks: saves checkpoints in the background, and restores the newest one that is intact."""

import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from instruct_ray.errors import InputError, one_line
from instruct_ray.run.lock import LockTicket
from instruct_ray.training.checkpoint.background_commit import BackgroundCommit, keep_newest
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
# How long ranks wait, between two collectives, for a checkpoint that is being written.
WAIT_SECONDS = 60.0
# The end of a run waits this many times for its last checkpoint.
MAX_FINAL_WAITS = 30


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes."""

    step: int = 0
    """Number of steps that are done."""
    folder: Path | None = None
    """The folder to load; None if training starts from the beginning."""
    is_universal: bool = False
    """Whether `folder` is a universal checkpoint, converted because another number of ranks wrote it."""
    checkpoint: Path | None = None
    """The committed checkpoint itself; None if training starts from the beginning."""
    decays_all: bool = False
    """Whether weight decay includes norms and biases in this run: an earlier version began it."""
    corrupted: tuple[str, ...] = ()
    """What is wrong with newer checkpoints."""


@dataclass(frozen=True)
class SaveResult:
    """The result of saving a checkpoint."""

    folder: Path | None
    """The checkpoint once all ranks have committed it; None if it could not be saved."""
    problem: str | None = None
    """Why it could not be saved. Training can go on without it: the previous checkpoint is intact."""


@dataclass(frozen=True)
class LostCheckpoint:
    """A checkpoint that will not be committed. Training can go on without it: the previous one is intact."""

    step: int
    message: str


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A checkpoint that all ranks have committed."""

    step: int
    save_seconds: float
    """How long rank 0 wrote its shards to its local disk, while the next step waited."""
    commit_seconds: float
    """From the beginning of that until the shards of all ranks were in the storage."""


class Checkpointer:
    """Saves and restores one rank's part of the checkpoints. Every public method is collective."""

    def __init__(
        self,
        checkpoint_dir: Path,
        contract_digest: str,
        num_checkpoints: int,
        rank: int,
        world_size: int,
        device: torch.device,
        lock: LockTicket | None = None,
    ) -> None:
        """`lock` is that of the run, checked before a checkpoint is committed; None in a trial run."""
        self._checkpoint_dir, self._contract_digest, self._device = checkpoint_dir, contract_digest, device
        self._num_checkpoints, self._rank, self._world_size = num_checkpoints, rank, world_size
        self._lock = lock
        # The checkpoint that is being written.
        self._commit: BackgroundCommit | None = None
        self._folder = checkpoint_dir
        # Names of the checkpoints that this attempt found and could not resume from.
        self._unusable: frozenset[str] = frozenset()
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
        self._unusable = frozenset(path.name for path in self._checkpoint_dir.glob("checkpoint-*"))
        committed = broadcast_object(find_committed(self._checkpoint_dir), self._device)
        for folder in committed:
            if problem := self._find_corruption(folder):
                corrupted.append(problem)
                continue
            self._unusable -= {path.name for path in committed[committed.index(folder) :]}
            manifest = load_manifest(folder)
            self._check_contract(folder, manifest)
            # Without sharding every rank has the same state, so any number of ranks can load it.
            is_universal = manifest.world_size != self._world_size and zero_stage > 0
            if is_universal:
                self._convert(folder, manifest.tag)
            return ResumePoint(
                step=manifest.step,
                folder=self._universal if is_universal else folder,
                is_universal=is_universal,
                checkpoint=folder,
                decays_all=manifest.decays_all,
                corrupted=tuple(corrupted),
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

    def save(
        self, engine: DeepSpeedEngine, step: int, on_committed: Callable[[CommittedCheckpoint], None]
    ) -> SaveResult:
        """Write this rank's shards to its local disk; they are moved and committed while the next steps run.

        `settle` then says whether they are. Until it has, no other checkpoint is saved. A thread of rank 0 calls
        `on_committed` once all ranks have committed.
        """
        started = time.perf_counter()
        if self._commit is not None:
            still = f"that of step {self._commit.step} is still being written to {self._checkpoint_dir}"
            return SaveResult(None, f"no checkpoint at step {step}: {still}")
        shards = self._local / step_tag(step)
        engine.save(shards, step_tag(step))
        if shortage := self._find_disk_shortage(shards):
            shutil.rmtree(shards)
            return SaveResult(None, f"no checkpoint at step {step}: {shortage}")
        manifest = ShardManifest(
            step=step,
            rank=self._rank,
            world_size=self._world_size,
            contract_digest=self._contract_digest,
            files={},
            decays_all=engine.decays_all,
        )
        self._folder = self._checkpoint_dir / checkpoint_dir_name(step, self._attempt)
        save_seconds = time.perf_counter() - started

        def report() -> None:
            on_committed(CommittedCheckpoint(step, save_seconds, time.perf_counter() - started))

        self._commit = BackgroundCommit(
            step,
            partial(self._commit_shards, shards, self._folder, manifest),
            and_then=partial(self._keep_newest, self._folder, report) if self._rank == 0 else lambda: None,
        )
        return SaveResult(self._folder)

    def settle(self) -> LostCheckpoint | None:
        """Wait up to WAIT_SECONDS for the checkpoint that is being written.

        Returns None if it is committed, if it is still being written, or if there is none.
        """
        if self._commit is None:
            return None
        has_ended = self._commit.wait(WAIT_SECONDS)
        states = gather_objects((has_ended, self._commit.problem))
        if not all(has_ended for has_ended, _ in states):
            return None
        step, self._commit = self._commit.step, None
        problem = next((problem for _, problem in states if problem), None)
        if problem is None:
            return None
        shutil.rmtree(self._local / step_tag(step), ignore_errors=True)
        if self._rank == 0:
            # In the background: the storage may be slow.
            remove = partial(shutil.rmtree, self._folder, ignore_errors=True)
            threading.Thread(target=remove, daemon=True).start()
        return LostCheckpoint(step, f"the checkpoint of step {step} was not written: {problem}")

    def finish(self) -> LostCheckpoint | None:
        """Wait until the last checkpoint is committed, or half an hour."""
        commit, step = self._commit, self._commit.step if self._commit else 0
        for _ in range(MAX_FINAL_WAITS):
            lost = self.settle()
            if lost is None and self._commit is None and commit is not None:
                commit.join()
            if lost or self._commit is None:
                return lost
        minutes = MAX_FINAL_WAITS * WAIT_SECONDS / 60
        message = f"the last checkpoint is still being written to {self._checkpoint_dir} after {minutes:g} minutes"
        return LostCheckpoint(step, message)

    def _commit_shards(self, shards: Path, folder: Path, manifest: ShardManifest) -> None:
        if self._lock is not None:
            self._lock.check()
        commit_shards(shards, folder, manifest)

    def _keep_newest(self, folder: Path, on_committed: Callable[[], None]) -> None:
        if self._lock is None or not self._lock.is_lost():
            keep_newest(folder, self._num_checkpoints, self._unusable, on_committed)

    def _find_corruption(self, folder: Path) -> str | None:
        """The first problem that a rank finds, the same on every rank."""
        problems = gather_objects(find_corruption(folder, self._rank, self._world_size))
        return next((problem for problem in problems if problem is not None), None)

    def _find_disk_shortage(self, shards: Path) -> str | None:
        """Why the storage has no room for the shards of all ranks, the same on every rank; None if it has."""
        num_bytes = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
        free, problem = 0, None
        try:
            free = shutil.disk_usage(self._checkpoint_dir).free
        except OSError as error:
            problem = f"{self._checkpoint_dir}: {one_line(error)}"
        answers = gather_objects((num_bytes, free, problem))
        failures = [str(failure) for *_, failure in answers if failure]
        if failures:
            return failures[0]
        needed, free = sum(num_bytes for num_bytes, *_ in answers), min(free for _, free, _ in answers)
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
