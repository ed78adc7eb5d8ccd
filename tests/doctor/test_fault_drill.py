"""The fault drill: its verdict, and that it leaves the run unchanged."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.doctor.drill_report import DrillReport, max_weight_difference
from instruct_ray.doctor.fault_drill import run_fault_drill
from instruct_ray.doctor.trial_run import NUM_STEPS
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from tests.fakes import ignore_status, ray_is_running


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_drill_passes_and_leaves_the_run_unchanged(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"examples_per_step": 12, "num_workers": 2, "zero_stage": 3})
    prepare(config, ray_is_running)
    folder = RunFolder.from_config(config).path
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    report = run_fault_drill(config, ignore_status, ray_is_running)
    assert report.passed
    # Full epochs of the six packs of the run.
    assert report.num_steps == 12 >= NUM_STEPS
    assert report.num_rows > find_packs(RunFolder.from_config(config)).num_examples
    # Killed after 5 steps, of which 3 were in a checkpoint.
    assert report.num_redone_steps in (2, 3)
    assert 1 < report.recovery_seconds < 60
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files
    assert list(folder.parent.iterdir()) == [folder]


def test_run_without_packs_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match=r"run `instruct-ray prepare`"):
        run_fault_drill(make_config(), ignore_status, ray_is_running)


@pytest.mark.parametrize(
    ("actual", "difference"),
    [
        ({"a": [1.0, 2.0]}, 0.0),
        ({"a": [1.0, 2.5]}, 0.5),
        ({"a": [1.0, float("nan")]}, float("inf")),
        ({"b": [1.0]}, float("inf")),
    ],
)
def test_weights_are_compared(tmp_path: Path, actual: dict[str, list[float]], difference: float) -> None:
    for name, weights in (("expected", {"a": [1.0, 2.0]}), ("actual", actual)):
        (tmp_path / name).mkdir()
        tensors = {key: torch.tensor(value) for key, value in weights.items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert max_weight_difference(tmp_path / "expected", tmp_path / "actual") == difference


@pytest.mark.parametrize(("has_planned_rows", "difference"), [(False, 0.0), (True, 1e-9), (True, float("inf"))])
def test_any_difference_fails_the_drill(has_planned_rows: bool, difference: float) -> None:
    report = DrillReport(
        num_steps=8,
        num_rows=96,
        num_redone_steps=2,
        recovery_seconds=5.0,
        has_planned_rows=has_planned_rows,
        max_weight_difference=difference,
    )
    assert not report.passed
