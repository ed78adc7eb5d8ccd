"""worker, all ranks: starts validation tasks, awaits their results, and decides on early stopping."""

from collections.abc import Callable
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError

from instruct_ray.errors import last_line
from instruct_ray.run.events import log_event
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.training.checkpoint.manifest import find_committed, load_manifest
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.validation.results import best_result, patience_exhausted, read_results, result_file
from instruct_ray.training.validation.task import EvalFn, ValidationSpec, validate_checkpoint

# Longest wait of rank 0 between two collectives, which would time out on the other ranks.
WAIT_SECONDS = 30.0
# After these waits the cluster probably has a problem; training continues without the result.
MAX_WAITS = 120


class Validator:
    """Validates checkpoints, one at a time. Rank 0 runs the tasks; every public method is collective."""

    def __init__(self, spec: ValidationSpec, eval_fn: EvalFn, rank: int, device: torch.device) -> None:
        self._spec, self._eval_fn, self._rank, self._device = spec, eval_fn, rank, device
        # The checkpoint that was started last.
        self._step = 0
        # On rank 0, while it is being validated.
        self._task: ray.ObjectRef[None] | None = None
        settings = spec.validation
        self._remote_validate = ray.remote(validate_checkpoint).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            runtime_env=worker_runtime_env(use_gpu=settings.num_gpus > 0),
        )

    def resume(self, checkpoint_dir: Path, step: int, is_due: Callable[[int], bool]) -> None:
        """Validate the checkpoints up to `step` that earlier attempts should have validated and did not."""
        unvalidated: list[tuple[int, Path]] = []
        if self._rank == 0:
            checkpoints = {load_manifest(folder).step: folder for folder in find_committed(checkpoint_dir)}
            unvalidated = [
                (checkpoint_step, checkpoint)
                for checkpoint_step, checkpoint in sorted(checkpoints.items())
                if checkpoint_step <= step and is_due(checkpoint_step) and not self._has_result(checkpoint_step)
            ]
        for checkpoint_step, checkpoint in broadcast_object(unvalidated, self._device):
            self.finish()
            self.start(checkpoint, checkpoint_step)

    def start(self, checkpoint: Path, step: int) -> None:
        """Start to validate a checkpoint. It need not be committed yet."""
        self._step = step
        if self._rank == 0 and not self._has_result(step):
            self._task = self._remote_validate.remote(checkpoint, self._spec, self._eval_fn)

    def should_stop_early(self, step: int) -> bool:
        """Await the result of the checkpoint before `step`, and return whether patience is exhausted."""
        self.finish()
        results = read_results(self._spec.validation_dir, step) if self._rank == 0 else []
        should_stop = bool(broadcast_object(patience_exhausted(results, self._spec.validation), self._device))
        if should_stop and self._rank == 0:
            best = best_result(results, self._spec.validation)
            self._log_event(f"stopped early at step {step}: no validation result after step {best.step} is better")
        return should_stop

    def finish(self) -> None:
        """Await the result of the checkpoint that is being validated, if there is one."""
        for _ in range(MAX_WAITS):
            if broadcast_object(self._wait_for_task(), self._device):
                return
        if self._rank == 0:
            minutes = MAX_WAITS * WAIT_SECONDS / 60
            self._log_event(
                f"validation of step {self._step} took longer than {minutes:g} minutes; training continues without "
                "its result"
            )
            self._task = None

    def _has_result(self, step: int) -> bool:
        return result_file(self._spec.validation_dir, step).is_file()

    def _wait_for_task(self) -> bool:
        """Wait up to WAIT_SECONDS, and return whether the task has ended; true if there is none."""
        if self._task is None:
            return True
        if not ray.wait([self._task], timeout=WAIT_SECONDS)[0]:
            return False
        try:
            ray.get(self._task)
        except RayError as error:
            reason = last_line(error)
            self._log_event(f"validation of step {self._step} failed; training continues without its result: {reason}")
        self._task = None
        return True

    def _log_event(self, message: str) -> None:
        log_event(self._spec.events_file, message)
