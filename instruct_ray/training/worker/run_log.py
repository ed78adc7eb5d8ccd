"""worker, rank 0: one line per step in `metrics.jsonl`, and what was decided in `events.jsonl`."""

import time
from typing import Any

from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.files import append_json_line, atomic_write_text
from instruct_ray.run.events import log_event
from instruct_ray.training.checkpoint.checkpointer import ResumePoint
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.worker.loss_spikes import read_recent_losses
from instruct_ray.training.worker.mfu import MfuMeter
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import MAX_NAMED_ROWS, StepResult


class RunLog:
    """The log of a run; only one rank writes."""

    def __init__(self, spec: WorkerSpec, meter: MfuMeter, *, is_writer: bool) -> None:
        self._spec, self._meter, self._is_writer = spec, meter, is_writer

    def log_start(self, check: PackingCheck, resume_point: ResumePoint) -> None:
        """Log from which step training starts, and how packs are computed."""
        if not self._is_writer:
            return
        self._truncate(resume_point.step)
        for problem in resume_point.corrupted:
            log_event(self._spec.events_file, f"checkpoint skipped: {problem}")
        if resume_point.step:
            size = " with another number of workers" if resume_point.is_universal else ""
            log_event(self._spec.events_file, f"resuming from step {resume_point.step}{size}")
        if not check.is_packed:
            log_event(
                self._spec.events_file,
                f"training with padding instead of packs: {check.reason} ({self._spec.packing_check_file})",
            )

    def log_step(self, step: int, result: StepResult, others: dict[str, float]) -> None:
        """Log a step, counted from 1; `others` holds its `seconds` and what else is logged."""
        if not self._is_writer:
            return
        plan = self._spec.plan
        place: dict[str, Any] = {"step": step, "num_steps": plan.num_steps, "epoch": step / plan.steps_per_epoch}
        others |= {"time": time.time()} | self._meter.record(result.num_computed_tokens, others["seconds"])
        append_json_line(self._spec.metrics_file, place | result.record() | others)
        if not result.was_applied:
            log_event(self._spec.events_file, result.skip_message(step))

    def log_event(self, message: str) -> None:
        """Log what was decided, or went wrong without ending the training."""
        if self._is_writer:
            log_event(self._spec.events_file, message)

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of the last steps, as many as spike detection looks at."""
        spike = self._spec.train.loss_spike
        return read_recent_losses(self._spec.metrics_file, spike) if self._is_writer and spike else []

    def describe_rows(self, step: int) -> str:
        """The rows that a spike began with, for a message."""
        packs = PackedDataset.open(self._spec.packs_dir).take(self._spec.plan.step_packs(step - 1))
        row_ids = [row_id for pack in packs for row_id in pack["row_ids"]][:MAX_NAMED_ROWS]
        return (
            f"The first of them, step {step}, trained on rows {', '.join(row_ids)}; check them, or lower "
            "train.learning_rate"
        )

    def _truncate(self, num_steps: int) -> None:
        """Drop the lines of steps that a killed attempt made after its last checkpoint: they are made again."""
        path = self._spec.metrics_file
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # Atomically: the driver reads it meanwhile.
        atomic_write_text(path, "".join(lines[:num_steps]))
