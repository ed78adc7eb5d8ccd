"""worker, all ranks: validates checkpoints, decides on early stopping, and keeps the best model.

The ranks compute the loss themselves, right after the checkpoint. A task writes the checkpoint's model and generates
answers while training continues; it is awaited at the next checkpoint and acted on there, whatever its speed. So a run
that was killed in between decides like an uninterrupted one.
"""

import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError

from instruct_ray.errors import last_line, one_line
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.validation.best_model import clean_up, keep_if_best, load_best_result, new_candidate_dir
from instruct_ray.training.validation.loss import ValidationLoss
from instruct_ray.training.validation.results import (
    PendingValidation,
    ValidationResult,
    best_result,
    is_better,
    patience_exhausted,
    read_pending,
    read_results,
    remove_pending,
    write_pending,
    write_result,
)
from instruct_ray.training.validation.task import EvalFn, ValidationSpec, validate_checkpoint

# Longest wait of rank 0 between two collectives, which would time out on the other ranks.
WAIT_SECONDS = 30.0


class Validator:
    """Validates checkpoints, one at a time. Rank 0 runs the tasks and decides; every public method is collective."""

    def __init__(
        self,
        spec: ValidationSpec,
        loss: ValidationLoss,
        eval_fn: EvalFn | None,
        log_event: Callable[[str], None],
        rank: int,
        device: torch.device,
    ) -> None:
        """`eval_fn` computes the accuracy of a model folder; it is not called if no answers are wanted."""
        self._spec, self._loss, self._log_event = spec, loss, log_event
        self._settings, self._folder = spec.validation, spec.validation_dir
        self._eval_fn = eval_fn if self._settings.num_answers else None
        self._rank, self._device = rank, device
        # On rank 0: the results by step. A run that resumed from an earlier checkpoint also has results of later ones.
        self._results: dict[int, ValidationResult] = {}
        # On rank 0, while a checkpoint is being validated: the checkpoint, and its task if it needs one.
        self._pending: PendingValidation | None = None
        self._task: ray.ObjectRef[float | None] | None = None
        # On rank 0: the folder that the last task writes its model to.
        self._candidate = new_candidate_dir(self._folder, 0)
        self._remote_validate = ray.remote(validate_checkpoint).options(
            num_cpus=self._settings.num_cpus,
            num_gpus=self._settings.num_gpus,
            label_selector=self._settings.label_selector,
            runtime_env=worker_runtime_env(use_gpu=self._settings.num_gpus > 0),
        )

    def resume(
        self, engine: DeepSpeedEngine, checkpoint: Path | None, step: int, *, is_due: bool, is_end: bool
    ) -> bool:
        """Continue the validation of earlier attempts, at the step whose checkpoint the engine has loaded.

        `checkpoint` is None if training starts from the beginning; `is_due` if the step's checkpoint is validated.
        Returns whether training should stop early at this step, as an uninterrupted run would have done.
        """
        is_pending = self._rank == 0 and self._resume_pending(checkpoint, step)
        if checkpoint is None or not is_due or broadcast_object(is_pending, self._device):
            return False
        if not is_end and self.should_stop_early(step):
            return True
        self.start(engine, checkpoint, step)
        return False

    def start(self, engine: DeepSpeedEngine, checkpoint: Path, step: int) -> None:
        """Compute the loss of a checkpoint that the engine holds, and start its task. It need not be committed yet."""
        self.finish()
        if broadcast_object(step in self._results, self._device):
            return
        loss = self._loss.compute(engine)
        if self._rank == 0:
            self._launch(PendingValidation(step=step, checkpoint=checkpoint, loss=loss))

    def should_stop_early(self, step: int) -> bool:
        """Await the result of the checkpoint before `step`, and return whether patience is exhausted."""
        self.finish()
        results = [result for result in self._results.values() if result.step < step]
        should_stop = bool(broadcast_object(patience_exhausted(results, self._settings), self._device))
        if should_stop and (best := best_result(results, self._settings)):
            self._log_event(f"stopped early at step {step}: no validation result after step {best.step} is better")
        return should_stop

    def finish(self) -> None:
        """Await the task of the checkpoint that is being validated, if there is one, and decide about its model."""
        deadline = time.monotonic() + self._settings.max_wait_seconds
        while not broadcast_object(self._has_ended(deadline), self._device):
            pass
        if self._pending is not None:
            self._decide(self._pending)

    def cancel(self, step: int) -> None:
        """Give up the task of a checkpoint that will never be committed."""
        if self._task is not None and self._pending is not None and self._pending.step == step:
            ray.cancel(self._task, force=True)
            self._task = None
            self._log_failure("has no checkpoint to read: it was not written")

    def _resume_pending(self, checkpoint: Path | None, step: int) -> bool:
        """Start the task that a killed attempt did not finish; returns whether it is that of `step`."""
        clean_up(self._folder)
        self._results = {result.step: result for result in read_results(self._folder)}
        pending = read_pending(self._folder)
        # A later checkpoint is made and validated again.
        if pending is None or checkpoint is None or pending.step > step or pending.step in self._results:
            remove_pending(self._folder)
            return False
        # The folder of the run may have been moved.
        pending = pending.model_copy(update={"checkpoint": checkpoint.with_name(pending.checkpoint.name)})
        if pending.checkpoint.is_dir():
            self._launch(pending)
        else:
            self._pending = pending
            self._log_failure("can't be continued, since its checkpoint is gone")
        return pending.step == step

    def _launch(self, pending: PendingValidation) -> None:
        """Start the task of a checkpoint if anything depends on it."""
        self._pending, self._candidate = pending, new_candidate_dir(self._folder, pending.step)
        try:
            write_pending(self._folder, pending)
            best = load_best_result(self._folder)
        except OSError as error:
            self._log_failure(f"can't be recorded ({one_line(error)})")
            return
        result = ValidationResult(step=pending.step, loss=pending.loss, accuracy=None)
        if self._eval_fn is not None or is_better(result, best, self._settings):
            self._task = self._remote_validate.remote(pending.checkpoint, self._spec, self._candidate, self._eval_fn)

    def _has_ended(self, deadline: float) -> bool:
        """Wait a while for the task, and return whether it has ended; after the deadline it is cancelled."""
        if self._task is None:
            return True
        seconds_left = deadline - time.monotonic()
        if seconds_left > 0:
            return bool(ray.wait([self._task], timeout=min(seconds_left, WAIT_SECONDS))[0])
        ray.cancel(self._task, force=True)
        self._task = None
        self._log_failure(f"took longer than train.validation.max_wait_seconds={self._settings.max_wait_seconds:g}")
        return True

    def _decide(self, pending: PendingValidation) -> None:
        """Write the result of a checkpoint, after keeping its model if it is the best."""
        result = ValidationResult(step=pending.step, loss=pending.loss, accuracy=self._take_accuracy())
        self._pending = self._task = None
        self._results[pending.step] = result
        try:
            if not keep_if_best(self._folder, self._candidate, result, self._settings):
                self._log_event(f"step {pending.step} is the best so far, but its model is missing; it is not kept")
            # Last: a checkpoint with a result needs no further work.
            write_result(self._folder, result)
            remove_pending(self._folder)
        except OSError as error:
            self._log_event(f"the validation of step {pending.step} can't be written: {one_line(error)}")

    def _take_accuracy(self) -> float | None:
        if self._task is None:
            return None
        try:
            accuracy: float | None = ray.get(self._task)
            return accuracy
        except RayError as error:
            self._log_failure(f"failed: {last_line(error)}")
            return None

    def _log_failure(self, problem: str) -> None:
        assert self._pending is not None
        self._log_event(f"validation of step {self._pending.step} {problem}; training continues without its answers")
