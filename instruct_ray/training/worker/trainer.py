"""worker, all ranks: trains step by step, and decides after each step whether and how training continues."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.tree import Pack
from instruct_ray.run.lock import TAKEN_OVER
from instruct_ray.training.checkpoint.checkpointer import Checkpointer, LostCheckpoint, SaveResult
from instruct_ray.training.distributed.collectives import all_reduce_sums
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.exporter import Exporter
from instruct_ray.training.validation.validator import Validator
from instruct_ray.training.worker.loss_spikes import LossSpikeDetector
from instruct_ray.training.worker.lr_schedule import learning_rate_at
from instruct_ray.training.worker.outcome import Action, Decision
from instruct_ray.training.worker.preemption import PreemptionMonitor
from instruct_ray.training.worker.run_folder_monitor import RunFolderMonitor
from instruct_ray.training.worker.run_log import RunLog
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import MAX_NAMED_ROWS, PackLossFn, StepResult, summarize_step, train_step


@dataclass(frozen=True)
class Votes:
    """Requests of at least one rank, known to all ranks after a step."""

    stop: bool
    """Stop after this step."""
    check_preemption: bool
    """Check for preemption after this step; the check is a barrier."""
    is_last: bool
    """Train no further step: a node is about to be taken away."""
    lost_lock: bool
    """Write nothing more: another process has taken over the run."""


@dataclass
class WorkerTrainer:
    """Trains this rank's share of a run. All ranks make the same decisions; every method is collective."""

    spec: WorkerSpec
    packs: Iterator[list[Pack]]
    """This rank's packs of each step, beginning with `first_step`."""
    first_step: int
    """The next step to train, counted from 0."""
    engine: DeepSpeedEngine
    loss_fn: PackLossFn
    checkpointer: Checkpointer
    exporter: Exporter
    validator: Validator | None
    spike_detector: LossSpikeDetector | None
    log: RunLog
    preemption: PreemptionMonitor
    folder_monitor: RunFolderMonitor
    rank: int
    num_skipped_steps: int = 0
    """Consecutive skipped steps up to now."""

    def run(self) -> Decision:
        """Train the remaining steps and wait for the last checkpoint.

        Returns the decision that ended training, which is never CONTINUE.
        """
        decision = self._run_steps()
        self._log_lost_checkpoint(self.checkpointer.finish())
        return decision

    def _run_steps(self) -> Decision:
        plan = self.spec.plan
        num_target_tokens_by_pack = PackedDataset.open(self.spec.packs_dir).num_target_tokens
        for index in range(self.first_step, plan.num_steps):
            num_target_tokens = int(num_target_tokens_by_pack[plan.step_packs(index)].sum())
            result, votes = self._train_step(index, num_target_tokens)
            decision = Decision(Action.FAIL, TAKEN_OVER) if votes.lost_lock else self._check_losses(index + 1, result)
            if decision.action is Action.CONTINUE:
                decision = self._finish_step(index + 1, votes)
            if decision.action is not Action.CONTINUE:
                return decision
        return Decision(Action.FINISH)

    def _train_step(self, index: int, num_target_tokens: int) -> tuple[StepResult, Votes]:
        """Train and log one step; `index` counts from 0."""
        started = time.perf_counter()
        plan = self.spec.plan
        learning_rate = learning_rate_at(index, plan.num_steps, self.spec.train)
        # The dropout of a step depends on its index, not on the steps before, so a resumed run draws the same.
        torch.manual_seed(hash((plan.seed, index, self.rank)))
        packs = next(self.packs)
        wait_seconds = time.perf_counter() - started
        votes = {"stop": self.folder_monitor.stop_requested} | self.preemption.vote()
        local = train_step(self.engine, self.loss_fn, packs, num_target_tokens, learning_rate)
        votes["lost_lock"] = self.folder_monitor.lock_is_lost
        totals = all_reduce_sums(local.sums() | votes, self.engine.device)
        result = summarize_step(self.engine, local, totals, num_target_tokens)
        times = {"seconds": time.perf_counter() - started, "wait_seconds": wait_seconds}
        if not totals["lost_lock"]:
            self.log.log_step(index + 1, result, {"num_trained": num_target_tokens, "lr": learning_rate} | times)
        return result, Votes(**{name: totals[name] > 0 for name in votes})

    def _check_losses(self, step: int, result: StepResult) -> Decision:
        """Fail after too many skipped steps, or if the loss has spiked; `step` counts from 1."""
        self.num_skipped_steps = 0 if result.was_applied else self.num_skipped_steps + 1
        if self.num_skipped_steps == self.spec.train.max_nonfinite_steps:
            reason = f"{self.num_skipped_steps} consecutive steps were skipped, the last: {result.skip_message(step)}"
            return Decision(Action.FAIL, reason)
        if self.spike_detector and (spike := self.spike_detector.add(step, result.loss)):
            reason = (
                f"{spike.message}. The first of them, step {spike.first_step}, trained on rows "
                f"{', '.join(self._read_row_ids(spike.first_step))}; check these rows, or lower train.learning_rate"
            )
            return Decision(Action.FAIL, reason)
        return Decision(Action.CONTINUE)

    def _finish_step(self, step: int, votes: Votes) -> Decision:
        """Make a checkpoint if one is due, and stop if requested or if validation results no longer improve."""
        is_end, is_due = step == self.spec.plan.num_steps, self.spec.is_checkpoint_due(step)
        # Otherwise there is no time to wait for validation or to verify the export: the run stops, or exports anyway.
        is_midway = not (is_end or votes.stop)
        if is_due:
            # Before its validation is awaited.
            self._log_lost_checkpoint(self.checkpointer.settle())
        if self.validator and is_due and is_midway and self.validator.should_stop_early(step):
            return Decision(Action.FINISH)
        is_preempted = votes.is_last or (votes.check_preemption and self.preemption.check())
        if is_due or votes.stop or is_preempted:
            saved = self._save(step)
            if self.validator and saved.folder and is_due and (is_end or is_midway):
                self.validator.start(self.engine, saved.folder, step)
            if is_midway and not is_preempted:
                verified = self.exporter.verify_export_once(self.engine)
                if verified.postponed:
                    self.log.log_event(verified.postponed)
                if verified.problem:
                    return Decision(Action.FAIL, verified.problem)
        if votes.is_last and is_midway:
            self._wait_for_end(step)
        return Decision(Action.INTERRUPT if votes.stop and not is_end else Action.CONTINUE)

    def _wait_for_end(self, step: int) -> None:
        """Wait until the checkpoint of this step is committed and the node is taken away."""
        self._log_lost_checkpoint(self.checkpointer.settle())
        self.log.log_event(f"a node is about to be taken away; waiting after step {step} to go on elsewhere")
        self.preemption.wait_for_end()

    def _log_lost_checkpoint(self, lost: LostCheckpoint | None) -> None:
        if lost is not None:
            self.log.log_event(lost.message)
            if self.validator:
                self.validator.cancel(lost.step)

    def _save(self, step: int) -> SaveResult:
        started = time.perf_counter()
        self._log_lost_checkpoint(self.checkpointer.settle())
        saved = self.checkpointer.save(self.engine, step, self.log.log_checkpoint)
        if saved.problem:
            self.log.log_event(saved.problem)
        self.preemption.record_save(time.perf_counter() - started)
        return saved

    def _read_row_ids(self, step: int) -> list[str]:
        """Read the first row ids of a step's packs; `step` counts from 1."""
        packs = PackedDataset.open(self.spec.packs_dir).take(self.spec.plan.step_packs(step - 1))
        return [row_id for pack in packs for row_id in pack["row_ids"]][:MAX_NAMED_ROWS]
