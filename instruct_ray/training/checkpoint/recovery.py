"""worker, rank 0: records which checkpoints are committed, keeps the newest; the driver cleans up with that record.

Ray Train is not told of checkpoints. It rewrites its own list of them in place, and restarts all workers if the storage
fails at that moment.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.training.checkpoint.manifest import MANIFEST_PATTERN, find_committed, try_load_manifest

# In the checkpoint folder: the names of the committed checkpoints that are kept.
RECORD_FILE = "checkpoints.json"
# Ray Train's list of checkpoints, in runs of earlier versions.
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"


def keep_newest_checkpoints(checkpoint: Path, num_checkpoints: int, unusable: frozenset[str]) -> None:
    """Record that a checkpoint is committed, and remove the earlier ones except for the newest.

    `unusable` names checkpoints that are removed, too: later ones, which this attempt could not resume from.

    Raises:
        OSError: the storage failed.
    """
    folder, step = checkpoint.parent, _step(checkpoint)
    earlier = [path for path in find_committed(folder) if _step(path) < step and path.name not in unusable]
    kept = {checkpoint.name, *(path.name for path in earlier[: num_checkpoints - 1])}
    # Before anything is removed, so that the record lists none that is gone.
    atomic_write_json(folder / RECORD_FILE, {"committed": sorted(kept)})
    for path in folder.glob("checkpoint-*"):
        if path.name not in kept and (_step(path) < step or path.name in unusable):
            shutil.rmtree(path)


def delete_unreferenced(checkpoint_dir: Path, num_checkpoints: int) -> None:
    """Remove the checkpoints that are not kept, such as those of killed attempts. Called after training.

    Raises:
        OSError: the storage failed.
    """
    names, _ = _read_record(checkpoint_dir)
    kept = names or [path.name for path in find_committed(checkpoint_dir)[:num_checkpoints]]
    for folder in checkpoint_dir.glob("checkpoint-*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def recover_checkpoint_dir(checkpoint_dir: Path) -> list[str]:
    """Remove what a killed attempt left: checkpoints that are not committed.

    Returns what was wrong with checkpoints that had been committed, and with the record of them.

    Raises:
        InputError: there were committed checkpoints and none of them is left; nothing is changed.
    """
    names, record_problem = _read_record(checkpoint_dir)
    committed = find_committed(checkpoint_dir)
    uncommitted = [folder for folder in sorted(checkpoint_dir.glob("checkpoint-*")) if folder not in committed]
    problems = [reason for folder in uncommitted if (reason := _corruption_reason(folder, names))]
    if missing := [name for name in names if not (checkpoint_dir / name).is_dir()]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problems.append(f"{checkpoint_dir / missing[-1]}{others}, which {RECORD_FILE} lists, are gone")
    if record_problem:
        problems.append(record_problem)
    if problems and not committed:
        raise no_usable_checkpoint_error(checkpoint_dir, problems)
    for folder in uncommitted:
        shutil.rmtree(folder)
    # Ray Train would refuse to start from a list of checkpoints that it did not write itself.
    (checkpoint_dir / RAY_SNAPSHOT).unlink(missing_ok=True)
    return problems


def no_usable_checkpoint_error(checkpoint_dir: Path, problems: Sequence[str]) -> InputError:
    """The error of a run that was trained before and has no checkpoint to resume from.

    Such a run never restarts from scratch on its own.
    """
    return InputError(
        f"none of the checkpoints in {checkpoint_dir} can be used: {'; '.join(problems)}; restore them, or remove "
        f"{checkpoint_dir} to train from the beginning"
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _read_record(checkpoint_dir: Path) -> tuple[list[str], str | None]:
    """(names of the checkpoints that were kept, what is wrong with the record); no names before the first one."""
    for file, read_names in (
        (checkpoint_dir / RECORD_FILE, lambda values: values["committed"]),
        (
            checkpoint_dir / RAY_SNAPSHOT,
            lambda values: [result["checkpoint_dir_name"] for result in values["checkpoint_results"]],
        ),
    ):
        if not file.is_file():
            continue
        try:
            return [str(name) for name in read_names(json.loads(file.read_text()))], None
        except (ValueError, KeyError, TypeError):
            return [], f"{file} is corrupted"
    return [], None


def _corruption_reason(folder: Path, listed: Sequence[str]) -> str | None:
    """What happened to a checkpoint that is not committed now but had been; None if it never was.

    It had been committed if the record lists it, or if a manifest can't be read: manifests are written atomically.
    """
    manifests = sorted(folder.glob(MANIFEST_PATTERN))
    unreadable = [path for path in manifests if try_load_manifest(path) is None]
    if unreadable:
        return f"{unreadable[0]} is corrupted"
    if folder.name in listed:
        return f"{folder} has {len(manifests)} shard manifest(s), not one of every worker"
    return None
