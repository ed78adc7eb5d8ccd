"""A run watched from outside, by its metrics file: steps executed, also those whose lines were cut again, and when."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

POLL_SECONDS = 0.005
# A step that was under way at the fault is over by then, and no new worker has started.
LAST_STEP_SECONDS = 1.0


class Watch:
    """Follows `metrics.jsonl` while a run goes. A restarted worker cuts the lines of steps that it does again, seconds
    after the last of them was written: nothing is missed between two looks."""

    def __init__(self, metrics: Path) -> None:
        self._metrics, self._num_lines = metrics, 0
        self.executed = 0
        """Steps done, those done again counted again."""
        self.times: list[float] = []
        """When each was seen, in seconds of `time.monotonic`."""
        self.faults: list[float] = []
        """When each fault was made."""
        self._pending: list[tuple[int, Callable[[], None]]] = []
        self._timed: list[tuple[float, Callable[[], None]]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def at(self, step: int, fault: Callable[[], None]) -> None:
        """Make a fault once so many steps of the plan are done."""
        self._pending.append((step, fault))

    def after(self, seconds: float, fault: Callable[[], None]) -> None:
        """Make a fault so long after the first step, once the run is making steps again."""
        self._timed.append((seconds, fault))

    def __enter__(self) -> "Watch":
        self._num_lines = self._count()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # What was written last is seen too.
        time.sleep(10 * POLL_SECONDS)
        self._done.set()
        self._thread.join()

    @property
    def seconds_to_next_step(self) -> list[float]:
        """From each fault to the first step of the workers that were started after it."""
        return [next(t for t in self.times if t > fault + LAST_STEP_SECONDS) - fault for fault in self.faults]

    def _follow(self) -> None:
        while not self._done.is_set():
            found = self._count()
            self._num_lines = min(self._num_lines, found)
            if found > self._num_lines:
                now = time.monotonic()
                self.executed += found - self._num_lines
                self.times += [now] * (found - self._num_lines)
                self._num_lines = found
            if fault := self._due():
                self.faults.append(time.monotonic())
                fault()
            time.sleep(POLL_SECONDS)

    def _due(self) -> Callable[[], None] | None:
        if self._pending and self._num_lines >= self._pending[0][0]:
            return self._pending.pop(0)[1]
        is_running = self.times and time.monotonic() - self.times[-1] < LAST_STEP_SECONDS
        if self._timed and is_running and time.monotonic() - self.times[0] >= self._timed[0][0]:
            return self._timed.pop(0)[1]
        return None

    def _count(self) -> int:
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0


def workers(of: int | None = None) -> list[psutil.Process]:
    """The training workers under a process, this one if none is named."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_a_worker() -> None:
    """The hard way."""
    workers()[-1].kill()


def lines_of(metrics: Path) -> list[dict[str, float]]:
    """What a run recorded, a step a line."""
    return [json.loads(line) for line in metrics.read_text().splitlines()]
