"""worker, all ranks: samples CPU, memory and GPUs of each node, in a background thread of one worker per node."""

import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from instruct_ray.background import PeriodicThread
from instruct_ray.run.line_writer import LineWriter
from instruct_ray.run.lock import LockTicket

SECONDS = 10.0
# nvidia-smi hangs when the GPU driver has a problem.
GPU_TIMEOUT_SECONDS = 5
# Wait at the end for a sample that is being taken; a hanging nvidia-smi must not block the exit.
JOIN_TIMEOUT_SECONDS = 1.0
# Query field of nvidia-smi -> (MLflow's name, factor from nvidia-smi's unit to MLflow's).
GPU_FIELDS = {
    "utilization.gpu": ("utilization_percentage", 1.0),
    "memory.used": ("memory_usage_megabytes", 2**20 / 1e6),
    "power.draw": ("power_usage_watts", 1.0),
}

logger = logging.getLogger(__name__)


@contextmanager
def record_system_metrics(path: Path | None, lock: LockTicket | None) -> Iterator[None]:
    """Append a sample to the JSON lines of `path` every few seconds and at the end; do nothing if it is None."""
    if path is None:
        yield
        return
    # In Ray's folder on this node's disk.
    writer = LineWriter(path, Path.cwd(), lock)
    recorder = _Recorder(path, writer)
    try:
        with PeriodicThread(
            "system metrics", recorder.call, SECONDS, at_start_and_end=True, join_timeout=JOIN_TIMEOUT_SECONDS
        ):
            yield
    finally:
        if unwritten := writer.close():
            logger.warning("%s", unwritten)


def sample_system_metrics() -> dict[str, float]:
    """Measure this machine, by MLflow's names; CPU utilization is that since the calling thread's last call."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(memory.used / memory.total * 100, 1),
    }
    return values | _sample_gpus()


class _Recorder:
    """Appends numbered samples to a file. All its calls come from one thread."""

    def __init__(self, path: Path, writer: LineWriter) -> None:
        self._path, self._writer = path, writer
        self._next_number: int | None = None

    def call(self) -> None:
        """Start measuring at the first call, append a sample at each later one."""
        try:
            if self._next_number is None:
                # A resumed run continues the numbers.
                self._next_number = len(self._path.read_bytes().splitlines()) if self._path.exists() else 0
                psutil.cpu_percent()
                return
            sample = sample_system_metrics()
        except (OSError, psutil.Error) as error:
            # Tried again at the next call.
            logger.warning("no sample of the system metrics: %s", error)
            return
        self._writer.append({"step": self._next_number, "time": time.time(), **sample})
        self._next_number += 1


def _sample_gpus() -> dict[str, float]:
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GPU_TIMEOUT_SECONDS).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    values: dict[str, float] = {}
    for number, line in enumerate(output.splitlines()):
        for (name, factor), text in zip(GPU_FIELDS.values(), line.split(","), strict=True):
            # A value that the GPU can't measure is "[N/A]" or the like.
            if "[" not in text:
                values[f"gpu_{number}_{name}"] = round(float(text) * factor, 1)
    return values
