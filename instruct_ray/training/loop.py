"""What every training worker runs: restore, then step after step to the end of the plan, then export."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from transformers import AutoConfig

from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.feed import stream
from instruct_ray.data.packing import Pack
from instruct_ray.data.plan import Plan
from instruct_ray.errors import InputError
from instruct_ray.training.checkpointing.keeper import Keeper, Saved
from instruct_ray.training.exporting.export import Exporter, form_of
from instruct_ray.training.faults.preemption import Drain
from instruct_ray.training.job import TrainJob
from instruct_ray.training.log import Log
from instruct_ray.training.modeling.model import DTYPES, load_model
from instruct_ray.training.modeling.proof import agree
from instruct_ray.training.ranks import from_rank_0
from instruct_ray.training.schedule import learning_rate_at
from instruct_ray.training.step import Compute, Step, make_compute, train_step
from instruct_ray.training.watching.mfu import Meter
from instruct_ray.training.watching.spikes import SpikeWatch
from instruct_ray.training.watching.system_metrics import sampled
from instruct_ray.training.watching.validation import Score, Validator
from instruct_ray.training.zero import ZeroEngine

# (packs, plan, first step, rank, number of ranks) -> the packs of each step.
Read = Callable[[Path, Plan, int, int, int], Iterator[list[Pack]]]
# What a run that was asked to stop returns.
STOPPED = "stopped"


def train_loop_per_worker(config: dict[str, Any]) -> str:
    """What Ray Train runs on every worker: `work` of the `job`, and of how to `score` its checkpoints."""
    return work(TrainJob.model_validate(config["job"]), stream, config["score"])


def work(job: TrainJob, read: Read, score: Score | None) -> str:
    """Train on this rank's share of every step of the plan, and export. Returns why it stopped before the end, or
    nothing: what another attempt would only repeat is no failure to Ray."""
    try:
        training = _set_up(job, read, score)
    except InputError as error:
        # All ranks find the same.
        return str(error)
    with sampled(_system_metrics(job)):
        ending = training.run()
    if not ending and training.validator:
        training.validator.finish()
    return ending or training.exporter.export(training.engine)


def _system_metrics(job: TrainJob) -> Path | None:
    """Where one worker of each node writes down how busy it is."""
    context = ray.train.get_context()
    name = f"system-{context.get_node_rank()}.jsonl"
    return job.metrics.with_name(name) if context.get_local_rank() == 0 else None


def _set_up(job: TrainJob, read: Read, score: Score | None) -> "Training":
    """All that the steps need."""
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    dtype = DTYPES[job.train.precision]
    contract_digest = PackedDataset.open(job.packs).manifest["contract_digest"]
    keeper = Keeper(job.checkpoints, contract_digest, rank, world_size, device)
    start = keeper.find_start(job.train.zero_stage)
    # First of all: they travel while the model is loaded.
    packs = read(job.packs, job.plan, start.step, rank, world_size)
    # Before there is an engine: the proof loads a part of the base once more.
    proof = agree(job.base, job.packs, job.obstacle, job.proof, device)
    engine = ZeroEngine(
        job.train,
        job.plan.packs_per_rank(world_size),
        world_size,
        lambda: load_model(job.base, job.lora, job.train, dtype, job.plan.seed, proof.implementation, job.adapter),
        is_universal=start.is_universal,
    )
    keeper.restore(engine, start)
    log = Log(job, Meter(engine.model, device, job.train.precision, world_size), is_writer=rank == 0)
    log.began(proof, start)
    validator = Validator(job.validation, score, rank, device) if job.validation and score else None
    if validator:
        validator.resume(job.checkpoints, start.step, job.is_due)
    spike = job.train.loss_spike
    return Training(
        job=job,
        packs=packs,
        start=start.step,
        engine=engine,
        compute=make_compute(AutoConfig.from_pretrained(job.base), proof, dtype),
        keeper=keeper,
        exporter=_exporter(job, proof.implementation, rank),
        validator=validator,
        # What another process wrote, rank 0 reads for all: so all ranks watch the same losses.
        watch=SpikeWatch(spike, from_rank_0(log.losses(), device)) if spike else None,
        log=log,
        drain=Drain(rank),
        rank=rank,
    )


def _exporter(job: TrainJob, implementation: str, rank: int) -> Exporter:
    return Exporter(
        base=job.base,
        packs=job.packs,
        weights=job.weights,
        record=job.export_check,
        form=form_of(job.lora),
        implementation=implementation,
        is_quantized=job.lora is not None and job.lora.quantize is not None,
        rank=rank,
    )


@dataclass
class Training:
    """A rank's part of a training; all ranks take the same way through it."""

    job: TrainJob
    packs: Iterator[list[Pack]]
    """Of each step from `start` on."""
    start: int
    """Steps done before."""
    engine: ZeroEngine
    compute: Compute
    keeper: Keeper
    exporter: Exporter
    validator: Validator | None
    watch: SpikeWatch | None
    log: Log
    drain: Drain
    rank: int
    num_left_out: int = 0
    """Steps in a row, up to now."""

    def run(self) -> str:
        """The steps that are left; returns why it stopped before the end, or nothing."""
        num_trained_by_pack = PackedDataset.open(self.job.packs).num_trained
        for step in range(self.start, self.job.plan.num_steps):
            num_trained = int(num_trained_by_pack[self.job.plan.packs(step)].sum())
            done = self._step(step, num_trained)
            ending = self._trouble(step + 1, done)
            if ending is None:
                ending = self._checkpoint(step + 1, done)
            if ending is not None:
                return ending
        return ""

    def _step(self, step: int, num_trained: int) -> Step:
        began = time.perf_counter()
        plan, train = self.job.plan, self.job.train
        learning_rate = learning_rate_at(step, plan.num_steps, train)
        # Dropout depends on the position in the run alone, so a continued run draws what an uninterrupted one does.
        torch.manual_seed(hash((plan.seed, step, self.rank)))
        mine = next(self.packs)
        waited = time.perf_counter() - began
        wishes = {"wants_stop": self.job.stop.exists(), "wants_lookout": self.drain.is_due}
        done = train_step(self.engine, self.compute, mine, num_trained, learning_rate, **wishes)
        seconds = time.perf_counter() - began
        times = {"lr": learning_rate, "seconds": seconds, "wait_seconds": waited}
        self.log.stepped(step + 1, done, {"num_trained": num_trained} | times)
        return done

    def _trouble(self, step: int, done: Step) -> str | None:
        """Why training must not go on; None if it may."""
        self.num_left_out = 0 if done.was_applied else self.num_left_out + 1
        if self.num_left_out == self.job.train.max_nonfinite_steps:
            return f"{self.num_left_out} steps in a row were left out, the last: {done.left_out(step)}"
        if self.watch and (problem := self.watch.add(step, done.loss)):
            return f"{problem}. {self.log.rows_of(self.watch.steps[0])}"
        return None

    def _checkpoint(self, step: int, done: Step) -> str | None:
        """Make one if it is due, and see what the one before says. Returns why training ends here, nothing if it has
        come to its end early, None if it goes on."""
        is_end, is_due = step == self.job.plan.num_steps, self.job.is_due(step)
        # There is little time to stop, and at the end there is the export itself.
        is_on_the_way = not (is_end or done.is_last)
        if self.validator and is_due and is_on_the_way and self.validator.says_enough(step):
            return ""
        is_draining = done.is_lookout and self.drain.look()
        if is_due or done.is_last or is_draining:
            saved = self._save(step, done)
            if self.validator and saved.folder and is_due and (is_end or is_on_the_way):
                self.validator.begin(saved.folder, step)
            if is_on_the_way and not is_draining and (problem := self.exporter.rehearse(self.engine)):
                return problem
        return STOPPED if done.is_last and not is_end else None

    def _save(self, step: int, done: Step) -> Saved:
        began = time.perf_counter()
        saved = self.keeper.save(self.engine, step, {"loss": done.loss})
        self.log.noted(saved.problem)
        self.drain.saved(time.perf_counter() - began)
        return saved
