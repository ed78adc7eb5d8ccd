"""CPU, memory and GPUs of a node while it trains: a JSON line every few seconds, from a thread beside the training."""

import json
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SECONDS = 10.0
# A driver in trouble lets it hang.
GPU_TIMEOUT_SECONDS = 5
# What NVIDIA's tool is asked for, what MLflow calls it, and in which unit.
GPU_FIELDS = {
    "utilization.gpu": ("utilization_percentage", 1.0),
    "memory.used": ("memory_usage_megabytes", 2**20 / 1e6),
    "power.draw": ("power_usage_watts", 1.0),
}

logger = logging.getLogger(__name__)


@contextmanager
def record_system_metrics(path: Path | None) -> Iterator[None]:
    """Append a sample to `path` every few seconds while the block runs; nothing if it is None."""
    if path is None:
        yield
        return
    stopped = threading.Event()
    thread = threading.Thread(target=_sample_until, args=(path, stopped), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        # Not for a driver that hangs.
        thread.join(1.0)


def _sample_until(path: Path, stopped: threading.Event) -> None:
    try:
        # A run that continues goes on counting.
        number = len(path.read_bytes().splitlines()) if path.exists() else 0
        psutil.cpu_percent()
        is_over = False
        while not is_over:
            is_over = stopped.wait(SECONDS)
            line = json.dumps({"step": number, "time": time.time(), **sample_system_metrics()})
            with path.open("a") as file:
                file.write(line + "\n")
            number += 1
    except (OSError, psutil.Error) as error:
        logger.warning("no system metrics any more: %s", error)


def sample_system_metrics() -> dict[str, float]:
    """What this machine does now, by MLflow's names; the CPU since the last call."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(memory.used / memory.total * 100, 1),
    }
    return values | _gpus()


def _gpus() -> dict[str, float]:
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GPU_TIMEOUT_SECONDS).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    values: dict[str, float] = {}
    for number, line in enumerate(said.splitlines()):
        for (name, unit), value in zip(GPU_FIELDS.values(), line.split(","), strict=True):
            # A board that can't measure something says so in brackets.
            if "[" not in value:
                values[f"gpu_{number}_{name}"] = round(float(value) * unit, 1)
    return values
