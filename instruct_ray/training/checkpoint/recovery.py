"""driver: cleans up the checkpoint folder, before Ray Train opens it after a crash and at the end of a run."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from instruct_ray.errors import InputError
from instruct_ray.training.checkpoint.manifest import MANIFEST_PATTERN, find_committed, try_load_manifest

# Ray Train's own list of the checkpoints that it keeps.
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
UNUSABLE_SUFFIX = ".unusable"


@dataclass(frozen=True)
class _RaySnapshot:
    """What Ray Train's snapshot file holds."""

    checkpoints: tuple[str, ...] = ()
    """Names of the checkpoint folders that it lists."""
    problem: str | None = None
    """Why Ray Train can't start from the file; None if it can, or if there is none."""


def recover_checkpoint_dir(checkpoint_dir: Path) -> list[str]:
    """Clean up what a killed attempt left, before Ray Train opens the folder.

    Removes checkpoints that are not committed, and renames Ray Train's snapshot if Ray Train could not start from it.
    Returns what was wrong with checkpoints that had been committed and with the snapshot.

    Raises:
        InputError: there were committed checkpoints and none of them is left; nothing is changed.
    """
    snapshot_file, committed = checkpoint_dir / RAY_SNAPSHOT, find_committed(checkpoint_dir)
    snapshot = _load_snapshot(checkpoint_dir)
    uncommitted = [folder for folder in sorted(checkpoint_dir.glob("checkpoint-*")) if folder not in committed]
    corruptions = [reason for folder in uncommitted if (reason := _corruption_reason(folder, snapshot.checkpoints))]
    # Ray Train writes the snapshot once there is a checkpoint.
    if not committed and (corruptions or snapshot_file.is_file()):
        raise no_usable_checkpoint_error(checkpoint_dir, corruptions or [f"{snapshot_file} {snapshot.problem}"])
    for folder in uncommitted:
        shutil.rmtree(folder)
    unusable_file = snapshot_file.with_suffix(UNUSABLE_SUFFIX)
    if snapshot.problem or corruptions:
        with suppress(FileNotFoundError):
            snapshot_file.replace(unusable_file)
    if snapshot.problem is None:
        return corruptions
    return [*corruptions, f"{snapshot_file} {snapshot.problem}, so it was renamed to {unusable_file.name}"]


def no_usable_checkpoint_error(checkpoint_dir: Path, problems: Sequence[str]) -> InputError:
    """The error of a run that was trained before and has no checkpoint to resume from.

    Such a run never restarts from scratch on its own.
    """
    return InputError(
        f"none of the checkpoints in {checkpoint_dir} can be used: {'; '.join(problems)}; restore them, or remove "
        f"{checkpoint_dir} to train from the beginning"
    )


def delete_unreferenced(checkpoint_dir: Path) -> None:
    """Remove the checkpoints that Ray Train does not keep, such as those of killed attempts. Called after training.

    Raises:
        OSError: Ray Train's snapshot can't be read.
        ValueError: it is corrupted.
    """
    kept = _read_ray_snapshot(checkpoint_dir / RAY_SNAPSHOT)
    for folder in checkpoint_dir.glob("checkpoint-*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def _load_snapshot(checkpoint_dir: Path) -> _RaySnapshot:
    snapshot_file = checkpoint_dir / RAY_SNAPSHOT
    if not snapshot_file.is_file():
        return _RaySnapshot()
    try:
        names = _read_ray_snapshot(snapshot_file)
    except ValueError as error:
        return _RaySnapshot(problem=str(error))
    missing = [name for name in names if not (checkpoint_dir / name).is_dir()]
    if missing:
        return _RaySnapshot(names, f"lists {missing[0]}, which is gone")
    return _RaySnapshot(names, None if names else "lists no checkpoint")


def _read_ray_snapshot(snapshot_file: Path) -> tuple[str, ...]:
    """The names of the checkpoints that Ray Train keeps.

    Raises:
        ValueError: Ray Train could not read the file; the message completes "FILE ...".
    """
    try:
        state: dict[str, Any] = json.loads(snapshot_file.read_text())
        names = tuple(str(result["checkpoint_dir_name"]) for result in state["checkpoint_results"])
        version = state["ray_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("is corrupted") from None
    if version != ray.__version__:
        raise ValueError(f"was written by Ray {version}, but Ray {ray.__version__} is installed")
    return names


def _corruption_reason(folder: Path, listed: Sequence[str]) -> str | None:
    """What happened to a checkpoint that is not committed now but had been; None if it never was.

    It had been committed if Ray Train lists it, or if a manifest can't be read: manifests are written atomically.
    """
    manifests = sorted(folder.glob(MANIFEST_PATTERN))
    unreadable = [path for path in manifests if try_load_manifest(path) is None]
    if unreadable:
        return f"{unreadable[0]} is corrupted"
    if folder.name in listed:
        return f"{folder} has {len(manifests)} shard manifest(s), not one of every worker"
    return None
