"""driver: what a killed attempt left among the checkpoints, before Ray Train opens their folder and after the run."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from instruct_ray.errors import InputError
from instruct_ray.training.checkpoint.manifest import _read, find_committed

RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"


def recover_checkpoint_dir(train: Path) -> list[str]:
    """Before Ray Train opens the folder of an earlier attempt: remove what was never committed, and set aside a
    snapshot that Ray would stop at. Returns what was wrong with what had been committed.

    Raises:
        InputError: checkpoints had been committed, and none of them is left; nothing is touched.
    """
    snapshot, signed = train / RAY_SNAPSHOT, find_committed(train)
    named, problem = _referenced_checkpoints(train)
    unsigned = [folder for folder in sorted(train.glob("checkpoint-*")) if folder not in signed]
    spoilt = [text for folder in unsigned if (text := _corruption_reason(folder, named))]
    # Ray writes it when the first checkpoint is there.
    if not signed and (spoilt or snapshot.is_file()):
        raise no_usable_checkpoint_error(train, spoilt or [f"{snapshot} {problem}"])
    for folder in unsigned:
        shutil.rmtree(folder)
    if problem or spoilt:
        with suppress(FileNotFoundError):
            snapshot.replace(snapshot.with_suffix(".set_aside"))
    return [*spoilt, *([f"{snapshot} {problem}"] if problem else [])]


def no_usable_checkpoint_error(train: Path, problems: Sequence[str]) -> InputError:
    """What a run says that was trained before and has no checkpoint to continue from: it never begins anew unasked."""
    return InputError(
        f"none of the checkpoints in {train} can be used: {'; '.join(problems)}. Put back what is missing, or remove "
        f"{train} to train from the beginning"
    )


def delete_unreferenced(train: Path) -> None:
    """At the end of a run: remove what Ray Train does not count among the checkpoints it keeps, such as those of
    attempts that were killed."""
    named = _read_ray_snapshot(train / RAY_SNAPSHOT)
    for folder in train.glob("checkpoint-*"):
        if folder.name not in named:
            shutil.rmtree(folder)


def _referenced_checkpoints(train: Path) -> tuple[list[str], str]:
    """(the checkpoints that Ray Train knows, what it would stop at; empty if nothing)"""
    snapshot = train / RAY_SNAPSHOT
    if not snapshot.is_file():
        return [], ""
    try:
        names = _read_ray_snapshot(snapshot)
    except ValueError as error:
        return [], str(error)
    gone = [name for name in names if not (train / name).is_dir()]
    return names, f"names {gone[0]}, which is gone" if gone else "" if names else "names no checkpoint"


def _read_ray_snapshot(snapshot: Path) -> list[str]:
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


def _corruption_reason(folder: Path, named: Sequence[str]) -> str:
    """What happened to a checkpoint that had been committed: Ray knows it, or a signature is there and can't be read,
    which is written whole or not at all. Empty of a folder that never was one."""
    signatures = sorted(folder.glob("signature-*.json"))
    damaged = [path for path in signatures if _read(path) is None]
    if damaged:
        return f"{damaged[0]} is damaged"
    if folder.name in named:
        return f"{folder} has {len(signatures)} signature(s), not one of every worker"
    return ""
