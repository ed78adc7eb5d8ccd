"""Checkpoints -> scores, by a task beside the training, off its ranks.

The scores of a checkpoint are awaited at the next one and decide there, whatever the speed of the task: a run that was
killed in between decides the same.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from pydantic import BaseModel, ConfigDict
from ray.exceptions import RayError
from transformers import AutoConfig

from instruct_ray import run
from instruct_ray.config import LoraConfig, TrainConfig, ValidationConfig
from instruct_ray.training.checkpointing.checkpoints import find_signed, is_signed, signature_of
from instruct_ray.training.exporting.export import complete_model, form_of, write_weights
from instruct_ray.training.modeling.model import DTYPES, load_model, plain_implementation
from instruct_ray.training.notices import note
from instruct_ray.training.ranks import from_rank_0
from instruct_ray.training.watching.scores import Scores, best_of, is_enough, path_of, read_scores, write_scores
from instruct_ray.training.zero import weights_of
from instruct_ray.worker_env import compute_env

# Among the scores: the model that has the best ones.
BEST = "best"
# In its folder.
BEST_SCORES = "scores.json"
POLL_SECONDS = 0.2
# The other ranks hear that often that the first one still waits: a silent collective would time out.
WAIT_SECONDS = 30.0
# Then something is wrong with the cluster, and the training goes on without these scores.
MAX_WAITS = 120

# A complete model folder -> (loss, accuracy); see `Scores`.
Score = Callable[[Path], tuple[float, float | None]]


class Validation(BaseModel):
    """What a task needs to know to score a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path
    adapter: Path | None
    contract: Path
    lora: LoraConfig | None
    train: TrainConfig
    settings: ValidationConfig
    seed: int
    folder: Path
    """Where scores and the best model are kept."""
    notices: Path


def validate(checkpoint: Path, job: Validation, score: Score) -> None:
    """Score a checkpoint once it is committed; keep its model if it is the best so far, and the scores, last."""
    while not is_signed(checkpoint):
        time.sleep(POLL_SECONDS)
    signature = signature_of(checkpoint)
    candidate = job.folder / f".{BEST}-{signature.step}"
    shutil.rmtree(candidate, ignore_errors=True)
    try:
        _write_model(checkpoint, signature.tag, job, candidate)
        loss, accuracy = score(candidate)
        scores = Scores(step=signature.step, loss=loss, accuracy=accuracy)
        if best_of([*read_scores(job.folder, signature.step), scores], job.settings) is scores:
            run.write_json(candidate / BEST_SCORES, scores.model_dump())
            shutil.rmtree(job.folder / BEST, ignore_errors=True)
            candidate.replace(job.folder / BEST)
        write_scores(job.folder, scores)
    finally:
        shutil.rmtree(candidate, ignore_errors=True)


def _write_model(checkpoint: Path, tag: str, job: Validation, folder: Path) -> None:
    dtype = DTYPES[job.train.precision]
    state = weights_of(checkpoint, tag, job.train.zero_stage)
    implementation = plain_implementation(AutoConfig.from_pretrained(job.base))
    model = load_model(job.base, job.lora, job.train, dtype, job.seed, implementation, job.adapter)
    # Frozen weights are those of the base.
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or trained & set(missing):
        raise RuntimeError(f"{checkpoint} holds other weights than the model: {[*unknown, *missing][0]}")
    form = form_of(job.lora)
    write_weights(model, weights if form == "full" else {n: weights[n] for n in trained}, folder, form)
    complete_model(folder, job.base, job.contract)


def best_scores(folder: Path) -> Scores | None:
    """Those of the best model; None if there is none."""
    path = folder / BEST / BEST_SCORES
    return Scores.model_validate_json(path.read_text()) if path.is_file() else None


class Validator:
    """Has checkpoints scored, one at a time; all ranks make the same calls."""

    def __init__(self, job: Validation, score: Score, rank: int, device: torch.device) -> None:
        self._job, self._score, self._rank, self._device = job, score, rank, device
        self._step = 0
        self._task: ray.ObjectRef[None] | None = None
        settings = job.settings
        self._remote = ray.remote(validate).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            runtime_env=compute_env(use_gpu=settings.num_gpus > 0),
        )

    def resume(self, checkpoints: Path, step: int, is_due: Callable[[int], bool]) -> None:
        """Score the checkpoints up to a step that an attempt before this one was to score and did not."""
        steps = {signature_of(folder).step: folder for folder in find_signed(checkpoints)} if self._rank == 0 else {}
        due = [each for each in sorted(steps) if each <= step and is_due(each) and not self._is_scored(each)]
        for each in from_rank_0(due, self._device):
            self.finish()
            self.begin(steps.get(each, checkpoints), each)

    def begin(self, checkpoint: Path, step: int) -> None:
        """Have a checkpoint scored; it may still be on its way."""
        self._step = step
        if self._rank == 0 and not self._is_scored(step):
            self._task = self._remote.remote(checkpoint, self._job, self._score)

    def says_enough(self, step: int) -> bool:
        """Await the scores of the checkpoint before `step`; whether training is to end with them."""
        self.finish()
        scores = read_scores(self._job.folder, step) if self._rank == 0 else []
        enough = bool(from_rank_0(is_enough(scores, self._job.settings), self._device))
        if enough and self._rank == 0:
            best = best_of(scores, self._job.settings)
            note(self._job.notices, f"stopped early at step {step}: no better than step {best.step} since")
        return enough

    def finish(self) -> None:
        """Await the scores that are still being made."""
        for _ in range(MAX_WAITS):
            if from_rank_0(self._is_done(), self._device):
                return
        if self._rank == 0:
            note(self._job.notices, f"validation of step {self._step} took too long; training goes on without it")
            self._task = None

    def _is_scored(self, step: int) -> bool:
        return path_of(self._job.folder, step).is_file()

    def _is_done(self) -> bool:
        if self._task is None:
            return True
        if not ray.wait([self._task], timeout=WAIT_SECONDS)[0]:
            return False
        try:
            ray.get(self._task)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            note(self._job.notices, f"validation of step {self._step} failed, and does not count: {reason}")
        self._task = None
        return True
