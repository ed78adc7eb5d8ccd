"""Samples the memory of a process and all its children while they run."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.bench.machine import ROOT

INTERVAL_SECONDS = 0.25


class MemoryWatch:
    """Samples the memory of a process tree in a thread.

    Counts the private pages of its processes plus all shared memory of the machine, which contains Ray's object store.
    Pages shared between processes would otherwise be counted once per process.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stopped = threading.Event()
        self._samples: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self._thread.join()

    def growth(self, idle_at: float, finished_at: float) -> int:
        """Compute the peak between two times minus the memory at the first, in bytes."""
        idle = [size for sampled_at, size in self._samples if sampled_at <= idle_at][-1]
        return max(size for sampled_at, size in self._samples if idle_at <= sampled_at <= finished_at) - idle

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            self._samples.append((time.time(), _memory_in_use(self._root)))


def _memory_in_use(root: psutil.Process) -> int:
    total = int(psutil.virtual_memory().shared)
    try:
        for process in [root, *root.children(recursive=True)]:
            memory = process.memory_info()
            total += memory.rss - memory.shared
    except psutil.NoSuchProcess:
        # A process ended during the sample; the next sample is soon.
        pass
    return total


def run_watched(command: Sequence[str], env: Mapping[str, str], log: Path) -> MemoryWatch:
    """Run a command in the repository's root and sample its memory.

    Raises:
        RuntimeError: it failed; the message has its last lines of output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=file, stderr=subprocess.STDOUT)
        watch = MemoryWatch(process.pid)
        code = process.wait()
        watch.stop()
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} exited with {code}:\n{tail}")
    return watch
