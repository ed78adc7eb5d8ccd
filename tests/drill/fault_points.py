"""Faults at named points of the worker processes of a drill.

A fault is armed by creating a file and fires once, which removes the file. Training waits at a checkpoint that is on
hold, such as `hold@180`, until the drill removes the file. The library knows nothing of the faults: Ray calls `install`
when a worker process starts.
"""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

# Names the folder of the armed faults. The name of each file is a point and a step, such as `mid_write@8`.
FAULTS_DIR = "INSTRUCT_RAY_DRILL_FAULTS"
SLOW_SECONDS = 2.0
HOLD_POLL_SECONDS = 0.05


def build_runtime_env(folder: Path) -> dict[str, Any]:
    """The argument of `ray.init` that installs the faults of `folder` in every worker process."""
    root = str(Path(__file__).parents[2])
    variables = {FAULTS_DIR: str(folder), "PYTHONPATH": root}
    return {"worker_process_setup_hook": "tests.drill.fault_points.install", "env_vars": variables}


def install() -> None:
    """Wrap the functions that save and commit a checkpoint, so that armed faults fire in them."""
    folder = Path(os.environ[FAULTS_DIR])
    from instruct_ray.training.checkpoint import manifest  # noqa: PLC0415  (only in the worker process)

    write_text, move, build_name = manifest.atomic_write_text, manifest._move, manifest.checkpoint_dir_name
    build_tag = manifest.step_tag

    def fires(point: str) -> bool:
        """Whether a fault is armed. Of all ranks and attempts, only the one that removes the file gets True."""
        try:
            (folder / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def kill_self_at(point: str) -> None:
        if fires(point):
            os.kill(os.getpid(), signal.SIGKILL)

    def parse_step(path: Path) -> int:
        checkpoint = next(parent for parent in path.parents if parent.name.startswith("checkpoint-"))
        return int(checkpoint.name.split("-")[1])

    def move_with_faults(path: Path, target: Path) -> Any:
        step = parse_step(target)
        if fires(f"disk_full@{step}"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        shard = move(path, target)
        kill_self_at(f"mid_write@{step}")
        return shard

    def write_manifest_with_faults(path: Path, text: str) -> None:
        step = parse_step(path)
        if fires(f"slow@{step}"):
            time.sleep(SLOW_SECONDS)
        kill_self_at(f"before_manifest@{step}")
        write_text(path, text)
        kill_self_at(f"after_manifest@{step}")

    def build_tag_with_faults(step: int) -> str:
        # The training loop calls it first when it saves a checkpoint.
        while (folder / f"hold@{step}").exists():
            time.sleep(HOLD_POLL_SECONDS)
        return build_tag(step)

    def build_name_with_faults(step: int, attempt: str) -> str:
        # Called by the training loop, not by the thread that commits.
        if (folder / "out_of_memory").exists():
            raise MemoryError
        return build_name(step, attempt)

    manifest._move, manifest.atomic_write_text = move_with_faults, write_manifest_with_faults
    manifest.checkpoint_dir_name, manifest.step_tag = build_name_with_faults, build_tag_with_faults
