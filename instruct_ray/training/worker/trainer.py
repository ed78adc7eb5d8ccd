"""worker, all ranks: one step after the other, and what is decided after each."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.checkpoint.checkpointer import Checkpointer, SaveResult
from instruct_ray.training.distributed.collectives import all_reduce_sums
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.exporter import Exporter
from instruct_ray.training.validation.validator import Validator
from instruct_ray.training.worker.loss_spikes import LossSpikeDetector
from instruct_ray.training.worker.lr_schedule import learning_rate_at
from instruct_ray.training.worker.outcome import Action, Decision
from instruct_ray.training.worker.preemption import PreemptionMonitor
from instruct_ray.training.worker.run_log import RunLog
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import PackLossFn, StepResult, summarize_step, train_step


@dataclass(frozen=True)
class Votes:
    """What at least one rank asks for, known to all ranks after a step."""

    stop: bool
    """To stop after this step."""
    check_preemption: bool
    """To ask Ray, all ranks together, whether a node is about to be taken away."""


@dataclass
class WorkerTrainer:
    """A rank's part of a training. All ranks make the same decisions."""

    spec: WorkerSpec
    packs: Iterator[list[Pack]]
    """This rank's packs of each step from `first_step` on."""
    first_step: int
    """Steps done before."""
    engine: DeepSpeedEngine
    loss_fn: PackLossFn
    checkpointer: Checkpointer
    exporter: Exporter
    validator: Validator | None
    spikes: LossSpikeDetector | None
    log: RunLog
    preemption: PreemptionMonitor
    rank: int
    num_skipped_steps: int = 0
    """Consecutive ones, up to now."""

    def run(self) -> Decision:
        """Train the steps that are left; the decision that ended it is never to continue."""
        target_tokens_of_packs = PackedDataset.open(self.spec.packs_dir).num_target_tokens
        for index in range(self.first_step, self.spec.plan.num_steps):
            num_target_tokens = int(target_tokens_of_packs[self.spec.plan.step_packs(index)].sum())
            result, votes = self._train_step(index, num_target_tokens)
            decision = self._check_health(index + 1, result)
            if decision.action is Action.CONTINUE:
                decision = self._checkpoint_if_due(index + 1, result, votes)
            if decision.action is not Action.CONTINUE:
                return decision
        return Decision(Action.FINISH)

    def _train_step(self, index: int, num_target_tokens: int) -> tuple[StepResult, Votes]:
        """One step, `index` counted from 0."""
        started = time.perf_counter()
        plan = self.spec.plan
        learning_rate = learning_rate_at(index, plan.num_steps, self.spec.train)
        # Dropout depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(hash((plan.seed, index, self.rank)))
        packs = next(self.packs)
        wait_seconds = time.perf_counter() - started
        votes = {"stop": self.spec.stop_file.exists(), "check_preemption": self.preemption.is_check_due}
        local = train_step(self.engine, self.loss_fn, packs, num_target_tokens, learning_rate)
        totals = all_reduce_sums(local.sums() | votes, self.engine.device)
        result = summarize_step(self.engine, local, totals, num_target_tokens)
        times = {"seconds": time.perf_counter() - started, "wait_seconds": wait_seconds}
        self.log.log_step(index + 1, result, {"num_trained": num_target_tokens, "lr": learning_rate} | times)
        return result, Votes(totals["stop"] > 0, totals["check_preemption"] > 0)

    def _check_health(self, step: int, result: StepResult) -> Decision:
        """Whether the losses allow training to go on after `step` steps."""
        self.num_skipped_steps = 0 if result.was_applied else self.num_skipped_steps + 1
        if self.num_skipped_steps == self.spec.train.max_nonfinite_steps:
            reason = f"{self.num_skipped_steps} consecutive steps were skipped, the last: {result.skip_message(step)}"
            return Decision(Action.FAIL, reason)
        if self.spikes and (spike := self.spikes.add(step, result.loss)):
            return Decision(Action.FAIL, f"{spike.message}. {self.log.describe_rows(spike.first_step)}")
        return Decision(Action.CONTINUE)

    def _checkpoint_if_due(self, step: int, result: StepResult, votes: Votes) -> Decision:
        """Make a checkpoint if one is due, and act on the validation of the one before."""
        is_end, is_due = step == self.spec.plan.num_steps, self.spec.is_checkpoint_due(step)
        # A run that stops has little time, and at the end the export itself is verified.
        goes_on = not (is_end or votes.stop)
        if self.validator and is_due and goes_on and self.validator.should_stop_early(step):
            return Decision(Action.FINISH)
        is_preempted = votes.check_preemption and self.preemption.check()
        if is_due or votes.stop or is_preempted:
            saved = self._save(step, result)
            if self.validator and saved.folder and is_due and (is_end or goes_on):
                self.validator.start(saved.folder, step)
            if goes_on and not is_preempted:
                verified = self.exporter.verify_export_once(self.engine)
                if verified.problem:
                    return Decision(Action.FAIL, verified.problem)
        return Decision(Action.INTERRUPT if votes.stop and not is_end else Action.CONTINUE)

    def _save(self, step: int, result: StepResult) -> SaveResult:
        started = time.perf_counter()
        saved = self.checkpointer.save(self.engine, step, {"loss": result.loss})
        if saved.problem:
            self.log.log_event(saved.problem)
        self.preemption.record_save(time.perf_counter() - started)
        return saved
