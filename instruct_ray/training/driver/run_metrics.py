"""driver: Prometheus metrics of a training run, through the metrics agent that Ray runs on each node.

The driver reads what rank 0 writes to the run's folder: steps pay nothing, and the series go on while workers restart.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.util.metrics import Counter, Gauge

from instruct_ray.background import PeriodicThread
from instruct_ray.training.driver.pending_workers import PendingWorkersReporter
from instruct_ray.training.driver.storage_monitor import StorageReporter

PREFIX = "instruct_ray_train_"
# Ray's agents forget a gauge that is not set again within two of their report intervals, of 1 s at least.
EXPORT_SECONDS = 1.0
# Rare events are gauges: Ray exports no counter before its first increment, which Prometheus then does not see.
GAUGES = {
    "step": "Steps that are done",
    "num_steps": "Steps of the whole run",
    "last_step_timestamp_seconds": "When the last step ended; before the first one, when training started",
    "loss": "Mean loss of the last step over its target tokens, in nats",
    "learning_rate": "Learning rate of the last step",
    "grad_norm": "Gradient norm of the last step, before clipping",
    "mfu": "Model FLOPs utilization of the last step",
    "gpu_peak_bytes": "The most memory that torch has taken from the GPU of rank 0",
    "steps_done_again": "Steps that were trained again after a restart, since the command started",
    "skipped_steps": "Steps that were skipped because loss or gradient was not finite, since the command started",
    "checkpoint_every_steps": "Steps between two checkpoints, as configured",
    "checkpoint_step": "Step of the newest checkpoint; 0 if there is none",
    "checkpoint_timestamp_seconds": "When the newest checkpoint was committed; before the first one, as for steps",
    "checkpoint_save_seconds": "How long the newest checkpoint held up training",
    "checkpoint_commit_seconds": "From the beginning of the newest checkpoint until all ranks had committed it",
    "waiting_for_nodes": "1 while the cluster lacks resources for the workers",
    "storage_failing": "1 while the run's storage is full, slow or failing",
}
COUNTERS = {
    "steps": "Steps, also those that were done again",
    "tokens": "Tokens of the examples that were trained on",
    "target_tokens": "Tokens that the loss was computed on",
    "computed_tokens": "Tokens that were computed",
    "step_seconds": "Time in steps",
    "data_wait_seconds": "Time in which steps waited for data",
}


class RunFigures:
    """What is known about a run, from the lines that rank 0 writes; any thread may add them."""

    def __init__(self, num_steps: int, checkpoint_every: int, started_at: float) -> None:
        """`started_at` is when the command began to train, in seconds since 1970."""
        # Older lines are of an earlier command, or are read again after a truncation of the file.
        self._counted_until = started_at
        self._max_step = 0
        self.totals = dict.fromkeys(COUNTERS, 0.0)
        """Values of the counters since `started_at`."""
        self.values: dict[str, float] = {
            "step": 0,
            "num_steps": num_steps,
            "last_step_timestamp_seconds": started_at,
            "steps_done_again": 0,
            "skipped_steps": 0,
            "checkpoint_every_steps": checkpoint_every,
            "checkpoint_step": 0,
            "checkpoint_timestamp_seconds": started_at,
        }
        """Values of the gauges that have one."""

    def add_step(self, record: Mapping[str, Any]) -> None:
        """Take a line of `metrics.jsonl`."""
        values = {
            "step": record["step"],
            "loss": record["loss"],
            "learning_rate": record["lr"],
            "grad_norm": record["grad_norm"],
            "mfu": record.get("mfu"),
            "gpu_peak_bytes": record.get("gpu_peak_bytes"),
        }
        self.values |= {name: value for name, value in values.items() if value is not None}
        if record["time"] > self._counted_until:
            self._count(record)
        self._max_step = max(self._max_step, record["step"])

    def add_checkpoint(self, record: Mapping[str, Any]) -> None:
        """Take a line of `checkpoints.jsonl`."""
        self.values |= {
            "checkpoint_step": record["step"],
            "checkpoint_save_seconds": record["save_seconds"],
            "checkpoint_commit_seconds": record["commit_seconds"],
            # One of an earlier command says nothing about how long this one has gone without.
            "checkpoint_timestamp_seconds": max(record["time"], self.values["checkpoint_timestamp_seconds"]),
        }

    def _count(self, record: Mapping[str, Any]) -> None:
        self._counted_until = self.values["last_step_timestamp_seconds"] = record["time"]
        self.values["steps_done_again"] += record["step"] <= self._max_step
        self.values["skipped_steps"] += not record["was_applied"]
        self.totals["steps"] += 1
        self.totals["tokens"] += record["num_tokens"]
        self.totals["target_tokens"] += record["num_trained"]
        self.totals["computed_tokens"] += record["num_computed_tokens"]
        self.totals["step_seconds"] += record["seconds"]
        self.totals["data_wait_seconds"] += record["wait_seconds"]


@contextmanager
def export_run_metrics(
    run_name: str, figures: RunFigures, pending: PendingWorkersReporter, storage: StorageReporter
) -> Iterator[None]:
    """Export the figures of a run, and what the two reporters see, inside the block."""
    exporter = _Exporter(run_name)

    def export() -> None:
        conditions = {"waiting_for_nodes": pending.is_waiting, "storage_failing": storage.has_problem}
        exporter.export(figures.values | conditions, figures.totals)

    with PeriodicThread("run metrics", export, EXPORT_SECONDS, at_start_and_end=True):
        yield


class _Exporter:
    """The metrics of one run, all with the label `run`. Made once Ray is connected: earlier values would be lost."""

    def __init__(self, run_name: str) -> None:
        self._tags = {"run": run_name}
        self._gauges = {name: Gauge(PREFIX + name, text, ("run",)) for name, text in GAUGES.items()}
        self._counters = {name: Counter(PREFIX + name, text, ("run",)) for name, text in COUNTERS.items()}
        self._exported = dict.fromkeys(COUNTERS, 0.0)

    def export(self, values: Mapping[str, float], totals: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._gauges[name].set(float(value), self._tags)
        for name, total in totals.items():
            # Ray refuses an increment by 0.
            if (increment := total - self._exported[name]) > 0:
                self._counters[name].inc(increment, self._tags)
                self._exported[name] = total
