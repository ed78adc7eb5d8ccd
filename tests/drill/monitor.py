"""Monitors a run through its metrics file: which steps it executed and when, also those that it later redid."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

POLL_SECONDS = 0.005
# A step that is under way when a fault happens ends within this time, and no restarted worker makes one within it.
LAST_STEP_SECONDS = 1.0


class RunMonitor:
    """Follows `metrics.jsonl` while a run is trained, and causes faults at given steps.

    A restarted worker removes the lines of the steps that it redoes. It does so seconds after the last of them was
    written, so polling sees every line.
    """

    def __init__(self, metrics_file: Path) -> None:
        self._metrics_file, self._num_lines = metrics_file, 0
        self.num_executed = 0
        """Executed steps, where a redone step counts again."""
        self.step_times: list[float] = []
        """When each executed step was seen, in seconds of `time.monotonic`."""
        self.fault_times: list[float] = []
        """When each fault was caused."""
        self._faults_at_step: list[tuple[int, Callable[[], None]]] = []
        self._faults_after: list[tuple[float, Callable[[], None]]] = []
        self._started_at = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def cause_at(self, step: int, fault: Callable[[], None]) -> None:
        """Cause a fault once this many steps are done."""
        self._faults_at_step.append((step, fault))

    def cause_after(self, seconds: float, fault: Callable[[], None]) -> None:
        """Cause a fault this long after the first step, at a time at which the run makes steps."""
        self._faults_after.append((seconds, fault))

    def __enter__(self) -> "RunMonitor":
        self._num_lines = self._count_lines()
        self._started_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Let the thread see the last lines.
        time.sleep(10 * POLL_SECONDS)
        self._stopped.set()
        self._thread.join()

    @property
    def seconds_to_first_step(self) -> float:
        """The time from entering the block until the first step that was seen."""
        return self.step_times[0] - self._started_at

    @property
    def seconds_to_next_step(self) -> list[float]:
        """Of each fault: the time until the first step of the workers that were started after it."""
        return [
            next(step_time for step_time in self.step_times if step_time > fault_time + LAST_STEP_SECONDS) - fault_time
            for fault_time in self.fault_times
        ]

    def _follow(self) -> None:
        while not self._stopped.is_set():
            num_lines = self._count_lines()
            self._num_lines = min(self._num_lines, num_lines)
            if num_lines > self._num_lines:
                now = time.monotonic()
                self.num_executed += num_lines - self._num_lines
                self.step_times += [now] * (num_lines - self._num_lines)
                self._num_lines = num_lines
            if fault := self._pop_due_fault():
                self.fault_times.append(time.monotonic())
                fault()
            time.sleep(POLL_SECONDS)

    def _pop_due_fault(self) -> Callable[[], None] | None:
        if self._faults_at_step and self._num_lines >= self._faults_at_step[0][0]:
            return self._faults_at_step.pop(0)[1]
        is_running = self.step_times and time.monotonic() - self.step_times[-1] < LAST_STEP_SECONDS
        if self._faults_after and is_running and time.monotonic() - self.step_times[0] >= self._faults_after[0][0]:
            return self._faults_after.pop(0)[1]
        return None

    def _count_lines(self) -> int:
        return self._metrics_file.read_bytes().count(b"\n") if self._metrics_file.exists() else 0


def find_workers() -> list[psutil.Process]:
    """The training workers among the descendants of this process."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(process.cmdline()):
                workers.append(process)
        except psutil.NoSuchProcess:
            continue
    return workers


def kill_a_worker() -> None:
    """Kill a worker with SIGKILL."""
    find_workers()[-1].kill()


def read_metrics(metrics_file: Path) -> list[dict[str, float]]:
    """The metrics of each step of a run."""
    return [json.loads(line) for line in metrics_file.read_text().splitlines()]
