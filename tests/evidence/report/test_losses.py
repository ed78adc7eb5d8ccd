"""Loss curves: every step counts, however long the training was."""

import json
from pathlib import Path

import pytest

from instruct_ray.evidence.report.losses import MAX_POINTS, LossPoint, read_training_losses, read_validation, smooth


def write_lines(path: Path, lines: list[dict[str, object]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def test_a_short_training_is_shown_step_by_step(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"step": n, "num_steps": 4, "loss": 4.0 / n} for n in (1, 2, 3)]
    lines.append({"step": 4, "num_steps": 4, "loss": None, "was_applied": False})
    # A killed process leaves half a line.
    curve = read_training_losses(write_lines(tmp_path / "metrics.jsonl", lines, end='{"step": 5, "lo'))
    assert [(point.step, point.loss) for point in curve.points] == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]
    assert (curve.num_steps, curve.num_skipped) == (4, 1)


def test_a_long_training_is_averaged_over_equal_parts(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"step": n, "num_steps": 30_000, "loss": float(n)} for n in range(1, 30_001)]
    curve = read_training_losses(write_lines(tmp_path / "metrics.jsonl", lines))
    assert len(curve.points) == MAX_POINTS
    assert sum(point.loss for point in curve.points) / MAX_POINTS == pytest.approx(15_000.5)
    assert all(abs(point.loss - point.step) <= 0.5 for point in curve.points)


def test_the_last_result_of_a_checkpoint_counts(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"step": 4, "loss": 1.0, "accuracy": None},
        {"step": 2, "loss": 3.0, "accuracy": 0.5},
        {"step": 4, "loss": 2.0, "accuracy": 0.75},
    ]
    points = read_validation(write_lines(tmp_path / "scores.jsonl", lines))
    assert points == (LossPoint(2, 3.0, 0.5), LossPoint(4, 2.0, 0.75))
    assert read_validation(tmp_path / "none.jsonl") == ()


def test_smoothing_keeps_a_line_and_its_ends() -> None:
    line = [LossPoint(step, 10.0 - step) for step in range(10)]
    assert [point.loss for point in smooth(line)] == pytest.approx([point.loss for point in line])
