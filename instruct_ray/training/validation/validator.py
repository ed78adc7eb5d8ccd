"""worker, all ranks: starts validation tasks, awaits their results, and decides on early stopping."""

from collections.abc import Callable
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError

from instruct_ray.run.events import log_event
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.training.checkpoint.manifest import find_committed, load_manifest
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.validation.results import best_result, patience_exhausted, read_results, result_file
from instruct_ray.training.validation.task import EvalFn, ValidationSpec, validate_checkpoint

# The other ranks hear that often that the first one still waits: a silent collective would time out.
WAIT_SECONDS = 30.0
# Then something is wrong with the cluster, and the training goes on without these scores.
MAX_WAITS = 120


class Validator:
    """Has checkpoints scored, one at a time; all ranks make the same calls."""

    def __init__(self, spec: ValidationSpec, eval_fn: EvalFn, rank: int, device: torch.device) -> None:
        self._spec, self._eval_fn, self._rank, self._device = spec, eval_fn, rank, device
        self._step = 0
        self._task: ray.ObjectRef[None] | None = None
        settings = spec.validation
        self._remote = ray.remote(validate_checkpoint).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            runtime_env=worker_runtime_env(use_gpu=settings.num_gpus > 0),
        )

    def resume(self, checkpoints: Path, step: int, is_due: Callable[[int], bool]) -> None:
        """Score the checkpoints up to a step that an attempt before this one was to score and did not."""
        steps = (
            {load_manifest(folder).step: folder for folder in find_committed(checkpoints)} if self._rank == 0 else {}
        )
        due = [each for each in sorted(steps) if each <= step and is_due(each) and not self._is_scored(each)]
        for each in broadcast_object(due, self._device):
            self.finish()
            self.start(steps.get(each, checkpoints), each)

    def start(self, checkpoint: Path, step: int) -> None:
        """Have a checkpoint scored; it may still be on its way."""
        self._step = step
        if self._rank == 0 and not self._is_scored(step):
            self._task = self._remote.remote(checkpoint, self._spec, self._eval_fn)

    def should_stop_early(self, step: int) -> bool:
        """Await the scores of the checkpoint before `step`; whether training is to end with them."""
        self.finish()
        scores = read_results(self._spec.validation_dir, step) if self._rank == 0 else []
        enough = bool(broadcast_object(patience_exhausted(scores, self._spec.validation), self._device))
        if enough and self._rank == 0:
            best = best_result(scores, self._spec.validation)
            log_event(self._spec.events_file, f"stopped early at step {step}: no better than step {best.step} since")
        return enough

    def finish(self) -> None:
        """Await the scores that are still being made."""
        for _ in range(MAX_WAITS):
            if broadcast_object(self._is_done(), self._device):
                return
        if self._rank == 0:
            log_event(
                self._spec.events_file, f"validation of step {self._step} took too long; training goes on without it"
            )
            self._task = None

    def _is_scored(self, step: int) -> bool:
        return result_file(self._spec.validation_dir, step).is_file()

    def _is_done(self) -> bool:
        if self._task is None:
            return True
        if not ray.wait([self._task], timeout=WAIT_SECONDS)[0]:
            return False
        try:
            ray.get(self._task)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            log_event(self._spec.events_file, f"validation of step {self._step} failed, and does not count: {reason}")
        self._task = None
        return True
