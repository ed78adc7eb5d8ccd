"""worker, all ranks: logs steps, checkpoints and events to JSON lines in the run's folder; a no-op except on rank 0.

The files are written by background threads, so a full, slow or failing storage never holds up a step.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from instruct_ray.background import PeriodicThread
from instruct_ray.run.events import event_record
from instruct_ray.run.line_writer import LineWriter
from instruct_ray.training.checkpoint.checkpointer import CommittedCheckpoint, ResumePoint
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.worker.gpu_meter import GpuMeter
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import StepResult
from instruct_ray.training.worker.storage_notice import publish_storage_problem

# How often it is checked whether the storage keeps up.
CHECK_SECONDS = 1.0


class RunLog:
    """The log of a run; its methods are no-ops except on rank 0."""

    def __init__(self, spec: WorkerSpec, meter: GpuMeter, resume_point: ResumePoint, *, is_writer: bool) -> None:
        self._spec, self._meter = spec, meter
        self._metrics: LineWriter | None = None
        self._events: LineWriter | None = None
        self._checkpoints: LineWriter | None = None
        self._problem: str | None = None
        if not is_writer:
            return
        # In Ray's folder on this node's disk.
        spool_dir = Path.cwd()
        self._events = LineWriter(spec.events_file, spool_dir, spec.lock)
        self._checkpoints = LineWriter(spec.checkpoints_file, spool_dir, spec.lock)
        truncate = partial(self._truncate_metrics, resume_point.step)
        self._metrics = LineWriter(spec.metrics_file, spool_dir, spec.lock, truncate)
        self._checks = PeriodicThread("storage", self._publish_problem, CHECK_SECONDS)
        self._checks.__enter__()

    def log_start(self, check: PackingCheck, resume_point: ResumePoint, unchunkable_head: str | None) -> None:
        """Log from which step training starts, and why it is padded or needs all logits at once, if so."""
        for problem in resume_point.corrupted:
            self.log_event(f"checkpoint skipped: {problem}")
        if resume_point.step:
            workers = " with another number of workers" if resume_point.is_universal else ""
            self.log_event(f"resuming from step {resume_point.step}{workers}")
        if not check.is_packed:
            self.log_event(f"training with padding instead of packs: {check.reason} ({self._spec.packing_check_file})")
        if unchunkable_head:
            self.log_event(
                f"the logits of all target tokens of a pack are kept at once, which takes memory: {unchunkable_head}"
            )

    def log_step(self, step: int, result: StepResult, values: Mapping[str, float]) -> None:
        """Log a step, counted from 1; `values` holds its `seconds` and whatever else is logged."""
        if self._metrics is None:
            return
        plan = self._spec.plan
        progress: dict[str, Any] = {"step": step, "num_steps": plan.num_steps, "epoch": step / plan.steps_per_epoch}
        gpu = self._meter.record(result.num_computed_tokens, values["seconds"])
        self._metrics.append(progress | result.record() | dict(values) | {"time": time.time()} | gpu)
        if not result.was_applied:
            self.log_event(result.skip_message(step))

    def log_checkpoint(self, checkpoint: CommittedCheckpoint) -> None:
        """Log a checkpoint that all ranks have committed; any thread may call it."""
        if self._checkpoints is not None:
            self._checkpoints.append(asdict(checkpoint) | {"time": time.time()})

    def log_event(self, message: str) -> None:
        """Log a decision, or a problem that doesn't end training."""
        if self._events is not None:
            self._events.append(event_record(message))

    def close(self) -> tuple[str, ...]:
        """Wait some seconds until all lines are in the storage; returns a message about those that are not."""
        if self._metrics is None or self._events is None or self._checkpoints is None:
            return ()
        self._checks.__exit__(None, None, None)
        lost = [message for message in (self._metrics.close(), self._checkpoints.close()) if message]
        for message in lost:
            self.log_event(message)
        messages = tuple(message for message in (*lost, self._events.close()) if message)
        publish_storage_problem(self._spec.metrics_file.parent, None)
        return messages

    def _publish_problem(self) -> None:
        """Tell the driver when the storage begins to fail, and when it works again."""
        writers = (self._metrics, self._events, self._checkpoints)
        problems = [writer.problem for writer in writers if writer is not None]
        problem = next((problem for problem in problems if problem), None)
        if problem != self._problem:
            self._problem = problem
            publish_storage_problem(self._spec.metrics_file.parent, problem)

    def _truncate_metrics(self, num_steps: int) -> None:
        """Drop the lines of steps that a killed attempt trained after its last checkpoint: they are trained again.

        In place, since a full disk has no room for a copy.
        """
        path, num_bytes, num_kept = self._spec.metrics_file, 0, 0
        if not path.exists():
            path.touch()
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or json.loads(line)["step"] > num_steps:
                    break
                num_bytes, num_kept = num_bytes + len(line), num_kept + 1
        os.truncate(path, num_bytes)
        if num_kept < num_steps:
            self.log_event(
                f"{path} lacks {num_steps - num_kept} of the {num_steps} steps before: they were not written"
            )
