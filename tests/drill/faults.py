"""Faults at named points, in the worker processes of a drill: armed by a file, gone with it. Nothing in the library
knows of them: Ray calls `install` when a worker process starts."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

# The folder of armed faults; each file's name is a point and a step, as in `mid_write@8`.
FOLDER = "INSTRUCT_RAY_DRILL_FAULTS"
SLOW_SECONDS = 2.0


def runtime_env(folder: Path) -> dict[str, Any]:
    """For `ray.init`: every worker process meets the faults in that folder."""
    root = str(Path(__file__).parents[2])
    variables = {FOLDER: str(folder), "PYTHONPATH": root}
    return {"worker_process_setup_hook": "tests.drill.faults.install", "env_vars": variables}


def install() -> None:
    """Put the points around committing a checkpoint."""
    folder = Path(os.environ[FOLDER])
    from instruct_ray.training.checkpoint import manifest  # noqa: PLC0415  (in the worker process alone)

    write, move, usage = manifest.atomic_write_text, manifest._move, manifest.shutil.disk_usage

    def fires(point: str) -> bool:
        """Once: of all ranks and attempts, the one that removes the file."""
        try:
            (folder / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def die_at(point: str) -> None:
        if fires(point):
            os.kill(os.getpid(), signal.SIGKILL)

    def step_of(path: Path) -> int:
        checkpoint = next(parent for parent in path.parents if parent.name.startswith("checkpoint-"))
        return int(checkpoint.name.split("-")[1])

    def move_one(path: Path, target: Path) -> Any:
        step = step_of(target)
        if fires(f"full@{step}"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        if (folder / "memory").exists():
            raise MemoryError
        shard = move(path, target)
        die_at(f"mid_write@{step}")
        return shard

    def sign(path: Path, text: str) -> None:
        step = step_of(path)
        if fires(f"slow@{step}"):
            time.sleep(SLOW_SECONDS)
        die_at(f"before_manifest@{step}")
        write(path, text)
        die_at(f"after_manifest@{step}")

    def free(path: Any) -> Any:
        found = usage(path)
        # Where checkpoints go; what looks at the disk before training finds it as it is.
        full = Path(path).name == "train" and (folder / "no_room").exists()
        return found._replace(free=1000) if full else found

    manifest._move, manifest.atomic_write_text, manifest.shutil.disk_usage = move_one, sign, free
