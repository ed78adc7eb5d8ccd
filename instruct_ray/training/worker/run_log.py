"""worker, all ranks: logs steps to `metrics.jsonl` and events to `events.jsonl`; a no-op except on rank 0."""

import time
from collections.abc import Mapping
from typing import Any

from instruct_ray.files import append_json_line, atomic_write_text
from instruct_ray.run.events import log_event
from instruct_ray.training.checkpoint.checkpointer import ResumePoint
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.worker.mfu import MfuMeter
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import StepResult


class RunLog:
    """The log of a run; its methods are no-ops except on rank 0."""

    def __init__(self, spec: WorkerSpec, meter: MfuMeter, *, is_writer: bool) -> None:
        self._spec, self._meter, self._is_writer = spec, meter, is_writer

    def log_start(self, check: PackingCheck, resume_point: ResumePoint) -> None:
        """Log from which step training starts, and why it is padded if it is."""
        if not self._is_writer:
            return
        self._truncate_metrics(resume_point.step)
        for problem in resume_point.corrupted:
            self.log_event(f"checkpoint skipped: {problem}")
        if resume_point.step:
            workers = " with another number of workers" if resume_point.is_universal else ""
            self.log_event(f"resuming from step {resume_point.step}{workers}")
        if not check.is_packed:
            self.log_event(f"training with padding instead of packs: {check.reason} ({self._spec.packing_check_file})")

    def log_step(self, step: int, result: StepResult, values: Mapping[str, float]) -> None:
        """Log a step, counted from 1; `values` holds its `seconds` and whatever else is logged."""
        if not self._is_writer:
            return
        plan = self._spec.plan
        progress: dict[str, Any] = {"step": step, "num_steps": plan.num_steps, "epoch": step / plan.steps_per_epoch}
        utilization = self._meter.record(result.num_computed_tokens, values["seconds"])
        append_json_line(
            self._spec.metrics_file, progress | result.record() | dict(values) | {"time": time.time()} | utilization
        )
        if not result.was_applied:
            self.log_event(result.skip_message(step))

    def log_event(self, message: str) -> None:
        """Log a decision, or a problem that doesn't end training."""
        if self._is_writer:
            log_event(self._spec.events_file, message)

    def _truncate_metrics(self, num_steps: int) -> None:
        """Drop the lines of steps that a killed attempt trained after its last checkpoint: they are trained again."""
        path = self._spec.metrics_file
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # Atomically, because the driver reads the file at the same time.
        atomic_write_text(path, "".join(lines[:num_steps]))
