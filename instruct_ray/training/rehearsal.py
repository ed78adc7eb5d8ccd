"""A short copy of a run: a few steps over its first packs, in a folder beside the run's that is removed after."""

import json
import shutil
import statistics
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from instruct_ray import base, run
from instruct_ray.config import Config
from instruct_ray.data import prepare
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.plan import Plan
from instruct_ray.training.job import PACKING_PROOF, job_of, plan_of
from instruct_ray.training.trainer import fit

NUM_STEPS = 8
# Steps that find memory and kernels new to them.
WARM_UP = 3
# No checkpoint but that of the end.
NEVER = 10**9


@dataclass(frozen=True)
class Pace:
    """How fast the steps of a run are."""

    seconds: float
    """Of a step; the median."""
    num_timed: int
    num_steps: int
    """Of the whole run."""

    @property
    def expected(self) -> float:
        """Seconds of all the run's steps."""
        return self.seconds * self.num_steps


def time_steps(config: Config, status: Callable[[str], None]) -> Pace:
    """Train and export a short copy on the cluster that is connected, with the run's own workers.

    Raises:
        InputError: the packs are not prepared, or the base can't be trained on them.
        RuntimeError: training failed.
    """
    dataset, model = prepare.find(config), base.resolve(config)
    plan = short_plan(config, dataset)
    train = config.train.model_copy(update={"checkpoint_every": NEVER, "max_failures": 0, "validation": None})
    with scratch(config, "timed") as folder:
        folder.path.mkdir()
        take_proof(run.RunFolder.of(config).path, folder.path)
        job = job_of(config.model_copy(update={"train": train}), dataset, model, folder, plan)
        status(f"timing {plan.num_steps} steps of {config.train.max_workers} worker(s)")
        if ending := fit(train, folder, job):
            raise RuntimeError(f"training stopped: {ending}")
        seconds = [json.loads(line)["seconds"] for line in folder.metrics.read_text().splitlines()][WARM_UP:]
    return Pace(statistics.median(seconds), len(seconds), plan_of(config, dataset).num_steps)


def short_plan(config: Config, dataset: PackedDataset) -> Plan:
    """A plan like the run's own over its first packs, of NUM_STEPS steps or a few more."""
    packs_per_step = plan_of(config, dataset).packs_per_step
    num_packs = min(dataset.num_packs, NUM_STEPS * packs_per_step)
    steps_per_epoch = -(-num_packs // packs_per_step)
    return Plan((num_packs,), packs_per_step, -(-NUM_STEPS // steps_per_epoch), config.run.seed)


@contextmanager
def scratch(config: Config, purpose: str) -> Iterator[run.RunFolder]:
    """A place for copies of a run, gone when the block ends."""
    own = run.RunFolder.of(config).path
    folder = own.with_name(f"{own.name}.{purpose}-{uuid.uuid4().hex[:8]}")
    try:
        yield run.RunFolder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def take_proof(source: Path, folder: Path) -> None:
    """What the run or an earlier copy has proved is not proved again."""
    if (source / PACKING_PROOF).is_file():
        shutil.copy(source / PACKING_PROOF, folder)
