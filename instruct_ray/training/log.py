"""What rank 0 writes down: a line a step in `metrics.jsonl`, and what was decided in `notices.jsonl`."""

import json
import time
from typing import Any

from instruct_ray.data.dataset import PackedDataset
from instruct_ray.run import write_text
from instruct_ray.training.checkpointing.keeper import Start
from instruct_ray.training.job import TrainJob
from instruct_ray.training.modeling.proof import PackingProof
from instruct_ray.training.notices import note
from instruct_ray.training.step import MAX_NAMED_ROWS, Step
from instruct_ray.training.watching.mfu import Meter
from instruct_ray.training.watching.spikes import losses_of


class Log:
    """The log of a run; only one rank writes."""

    def __init__(self, job: TrainJob, meter: Meter, *, is_writer: bool) -> None:
        self._job, self._meter, self._is_writer = job, meter, is_writer

    def began(self, proof: PackingProof, start: Start) -> None:
        """Where training begins, and how."""
        if not self._is_writer:
            return
        self._cut(start.step)
        for problem in start.damaged:
            note(self._job.notices, f"checkpoint left out: {problem}")
        if start.step:
            size = " with another number of workers" if start.is_universal else ""
            note(self._job.notices, f"continuing from step {start.step}{size}")
        if not proof.is_packed:
            note(self._job.notices, f"training padded instead of packed: {proof.reason} ({self._job.proof})")

    def stepped(self, step: int, done: Step, others: dict[str, float]) -> None:
        """A step is done; `step` counts from 1, and `others` holds the step's `seconds`."""
        if not self._is_writer:
            return
        plan = self._job.plan
        place: dict[str, Any] = {"step": step, "num_steps": plan.num_steps, "epoch": step / plan.steps_per_epoch}
        others |= {"time": time.time()} | self._meter.record(done.num_computed_tokens, others["seconds"])
        with self._job.metrics.open("a") as file:
            file.write(json.dumps(place | done.record() | others) + "\n")
        if not done.was_applied:
            note(self._job.notices, done.left_out(step))

    def noted(self, text: str) -> None:
        """Something was decided, or went wrong without stopping the training; nothing if it is empty."""
        if text and self._is_writer:
            note(self._job.notices, text)

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of the steps done, as many as the watch for spikes looks at."""
        spike = self._job.train.loss_spike
        return losses_of(self._job.metrics, spike) if self._is_writer and spike else []

    def rows_of(self, step: int) -> str:
        """In words: the rows that a spike began with."""
        packs = PackedDataset.open(self._job.packs).take(self._job.plan.packs(step - 1))
        row_ids = [row_id for pack in packs for row_id in pack["row_ids"]][:MAX_NAMED_ROWS]
        return (
            f"The first of them, step {step}, trained on rows {', '.join(row_ids)}; look at them, or lower "
            "train.learning_rate"
        )

    def _cut(self, num_steps: int) -> None:
        """Drop the lines of steps that a killed run did after its last checkpoint: they are done again."""
        path = self._job.metrics
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # At once: whoever reads it meanwhile must not find it short.
        write_text(path, "".join(lines[:num_steps]))
