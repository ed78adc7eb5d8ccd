"""driver: reads the losses of training and validation; of a long training only means over equal parts."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Points of the training curve. A longer training is averaged over parts of its steps.
MAX_POINTS = 300
# Part of the points that is averaged to smooth the curve.
SMOOTHED_SHARE = 0.06


@dataclass(frozen=True)
class LossPoint:
    """A loss in nats per target token."""

    step: int
    loss: float
    accuracy: float | None = None
    """Of a validated checkpoint: fraction of its answers that are right."""


@dataclass(frozen=True)
class LossCurve:
    """The training loss by step."""

    points: tuple[LossPoint, ...]
    num_steps: int
    """Steps that the file has."""
    num_skipped: int
    """Steps that were skipped, since loss or gradient was not finite."""


def read_training_losses(path: Path) -> LossCurve:
    """Read the losses of all steps of `metrics.jsonl`; no points if there is no such file."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    num_steps = num_skipped = 0
    for line in _read_lines(path):
        num_steps += 1
        if line.get("loss") is None or not line.get("was_applied", True):
            num_skipped += 1
            continue
        step, total = int(line["step"]), max(int(line.get("num_steps") or 0), int(line["step"]))
        part = step if total <= MAX_POINTS else (step - 1) * MAX_POINTS // total
        for index, value in enumerate((1.0, float(line["loss"]), float(step))):
            sums[part][index] += value
    points = [
        LossPoint(round(steps / count), loss / count) for count, loss, steps in (sums[key] for key in sorted(sums))
    ]
    return LossCurve(tuple(points), num_steps, num_skipped)


def read_validation(path: Path) -> tuple[LossPoint, ...]:
    """Read `scores.jsonl` of a run's validation, by step; of a step that was validated twice the last result."""
    by_step = {
        int(line["step"]): LossPoint(int(line["step"]), float(line["loss"]), line.get("accuracy"))
        for line in _read_lines(path)
        if line.get("loss") is not None
    }
    return tuple(by_step[step] for step in sorted(by_step))


def smooth(points: Sequence[LossPoint]) -> list[LossPoint]:
    """The mean of each point and those beside it; fewer at the ends."""
    radius = int(len(points) * SMOOTHED_SHARE / 2) or 1
    means = []
    for index, point in enumerate(points):
        near = min(radius, index, len(points) - 1 - index)
        window = [other.loss for other in points[index - near : index + near + 1]]
        means.append(LossPoint(point.step, sum(window) / len(window)))
    return means


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The values of each complete line; a line that a killed process left half-written is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n") and line.strip():
                yield json.loads(line)
