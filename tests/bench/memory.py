"""Peak memory of a process and all its children, sampled from outside while they run."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.bench.machine import ROOT

INTERVAL = 0.25


class MemoryWatch:
    """(time, bytes) of a process tree: the pages that its processes hold alone, plus all shared memory of the machine,
    which is where Ray's object store lies. Pages shared between processes would be counted once for each otherwise."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._samples: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def growth(self, idle_at: float, done_at: float) -> int:
        """The peak between two moments, over what was held at the first, in bytes."""
        idle = [held for at, held in self._samples if at <= idle_at][-1]
        return max(held for at, held in self._samples if idle_at <= at <= done_at) - idle

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._samples.append((time.time(), _held(self._root)))


def _held(root: psutil.Process) -> int:
    total = int(psutil.virtual_memory().shared)
    try:
        for process in [root, *root.children(recursive=True)]:
            memory = process.memory_info()
            total += memory.rss - memory.shared
    except psutil.NoSuchProcess:
        # One ended while we looked; the next sample comes soon.
        pass
    return total


def run_watched(command: Sequence[str], env: Mapping[str, str], log: Path) -> MemoryWatch:
    """Run a command from the repository's root to its end, watching its memory.

    Raises:
        RuntimeError: it failed; shows its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=file, stderr=subprocess.STDOUT)
        watch = MemoryWatch(process.pid)
        code = process.wait()
        watch.stop()
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{tail}")
    return watch
