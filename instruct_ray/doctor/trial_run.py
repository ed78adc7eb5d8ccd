"""driver: trial runs. A few steps of a run on its first packs, in a temporary folder next to the run's."""

import json
import shutil
import statistics
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.errors import RunFailedError
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.build_spec import build_plan, build_worker_spec
from instruct_ray.training.driver.launch import run_ray_train
from instruct_ray.training.worker.outcome import Ending
from instruct_ray.training.worker.spec import PACKING_CHECK_FILE

NUM_STEPS = 8
# The first steps allocate memory and choose kernels, so they are not timed.
NUM_WARM_UP_STEPS = 3
# For `checkpoint_every`: the only checkpoint is that of the last step.
NEVER = 10**9


@dataclass(frozen=True)
class StepTiming:
    """How long the steps of a run take."""

    step_seconds: float
    """The median of the timed steps."""
    num_timed_steps: int
    num_steps: int
    """Steps of the whole run."""

    @property
    def total_seconds(self) -> float:
        """The estimated time of all steps of the run."""
        return self.step_seconds * self.num_steps


def time_steps(run: OpenRun, status: Callable[[str], None]) -> StepTiming:
    """Train and export a trial run on the connected cluster, with as many workers as the run has.

    Raises:
        InputError: the packs are not prepared, or the base model can't be trained on them.
        RuntimeError: training failed; a RunFailedError if the reason is known.
    """
    plan = trial_plan(run.config, run.packs)
    train = run.config.train.model_copy(update={"checkpoint_every": NEVER, "max_failures": 0, "validation": None})
    with temporary_run(run.folder, "timed") as folder:
        folder.path.mkdir()
        copy_packing_check(run.folder.path, folder.path)
        spec = build_worker_spec(run, run.config.model_copy(update={"train": train}), folder, plan)
        status(f"timing {plan.num_steps} steps of {train.max_workers} worker(s)")
        outcome = run_ray_train(train, folder, spec)
        if outcome.ending is not Ending.FINISHED:
            raise RunFailedError(f"training stopped: {outcome.reason}")
        metrics = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    seconds = [step["seconds"] for step in metrics[NUM_WARM_UP_STEPS:]]
    return StepTiming(statistics.median(seconds), len(seconds), build_plan(run.config, run.packs).num_steps)


def trial_plan(config: Config, packs: PackedDataset) -> BatchPlan:
    """A plan with the step size of the run, for its first packs: `NUM_STEPS` steps or a few more, in full epochs."""
    packs_per_step = build_plan(config, packs).packs_per_step
    num_packs = min(packs.num_packs, NUM_STEPS * packs_per_step)
    steps_per_epoch = -(-num_packs // packs_per_step)
    return BatchPlan((num_packs,), packs_per_step, -(-NUM_STEPS // steps_per_epoch), config.run.seed)


@contextmanager
def temporary_run(run_folder: RunFolder, purpose: str) -> Iterator[RunFolder]:
    """A run folder for trial runs, next to that of the run; removed when the block ends."""
    path = run_folder.path
    folder = path.with_name(f"{path.name}.{purpose}-{uuid.uuid4().hex[:8]}")
    try:
        yield RunFolder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_packing_check(source: Path, folder: Path) -> None:
    """Copy the packing check of a run, if it has one, to the folder of a trial run, which then does not repeat it."""
    if (source / PACKING_CHECK_FILE).is_file():
        shutil.copy(source / PACKING_CHECK_FILE, folder)
