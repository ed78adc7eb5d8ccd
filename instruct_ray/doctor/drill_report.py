"""What a fault drill records of its two runs, and their comparison: rows of each step, and final weights."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.files import append_json_line


@dataclass(frozen=True)
class DrillReport:
    """How a run recovered from the kill of a worker, compared with an uninterrupted run."""

    num_steps: int
    """Steps of each run."""
    num_rows: int
    """Rows of all these steps."""
    num_redone_steps: int
    """Steps that were trained again after the kill."""
    recovery_seconds: float
    """From the kill to the end of the next step."""
    has_planned_rows: bool
    """Whether every step of both runs trained on the rows that the plan names."""
    max_weight_difference: float
    """The largest absolute difference between the weights of the runs; 0 if they are bitwise equal."""

    @property
    def passed(self) -> bool:
        """Whether rows and weights are the same as without the kill."""
        return self.has_planned_rows and self.max_weight_difference == 0


@dataclass(frozen=True)
class StepRows:
    """The rows that one rank read for a step."""

    step: int
    rank: int
    attempt: str
    """The same for all steps that a worker process reads, and unique to it."""
    rows: list[str]
    time: float
    """When they were read, in seconds since 1970."""


def record_step_rows(folder: Path, step_rows: StepRows) -> None:
    """Append the rows of a step to the file of their rank in the folder of a drill run."""
    append_json_line(folder / f"rows-{step_rows.rank}.jsonl", asdict(step_rows))


def load_step_rows(folder: Path) -> list[StepRows]:
    """Load the records of all ranks, in order of time."""
    lines = [line for path in folder.glob("rows-*.jsonl") for line in path.read_text().splitlines()]
    return sorted((StepRows(**json.loads(line)) for line in lines), key=lambda step_rows: step_rows.time)


def compare_rows(
    uninterrupted: list[StepRows], interrupted: list[StepRows], packs: PackedDataset, plan: BatchPlan
) -> tuple[int, bool]:
    """The number of rows that the plan names, and whether every step of both runs trained on them."""
    planned = {
        step: sorted(row for pack in packs.take(plan.step_packs(step)) for row in pack["row_ids"])
        for step in range(plan.num_steps)
    }
    has_planned_rows = _rows_by_step(uninterrupted) == planned and _rows_by_step(interrupted) == planned
    return sum(map(len, planned.values())), has_planned_rows


def compute_recovery(interrupted: list[StepRows], killed_at: float, num_steps: int) -> tuple[int, float]:
    """The number of redone steps, and the seconds from the kill to the end of the next step."""
    reads = [step_rows for step_rows in interrupted if step_rows.rank == 0]
    reads_after_kill = [step_rows for step_rows in reads if step_rows.attempt == reads[-1].attempt]
    # A step has ended when the rows of the next one are read.
    return len(reads) - num_steps, reads_after_kill[1].time - killed_at


def max_weight_difference(expected_dir: Path, actual_dir: Path) -> float:
    """The largest absolute difference between the weights in two folders.

    It is infinite if the folders hold different tensors, or if one value is NaN.
    """
    expected, actual = _load_weights(expected_dir), _load_weights(actual_dir)
    if expected.keys() != actual.keys() or not expected:
        return float("inf")
    if all(torch.equal(expected[name], actual[name]) for name in expected):
        return 0.0
    differences = [expected[name].double() - actual[name].double() for name in expected]
    return max(float(difference.abs().nan_to_num(float("inf")).max()) for difference in differences)


def _rows_by_step(records: list[StepRows]) -> dict[int, list[str]]:
    """Step -> the rows of all ranks, sorted. Of a step that was read several times, the last time counts."""
    last_reads = {(step_rows.step, step_rows.rank): step_rows.rows for step_rows in records}
    rows_by_step: dict[int, list[str]] = defaultdict(list)
    for (step, _), rows in last_reads.items():
        rows_by_step[step] += rows
    return {step: sorted(rows) for step, rows in rows_by_step.items()}


def _load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
