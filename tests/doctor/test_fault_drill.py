"""A user's own run is drilled: the verdict is right, and the run is not touched."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.doctor.fault_drill import DrillReport, _difference, run_fault_drill
from instruct_ray.doctor.trial_run import NUM_STEPS
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from tests.fakes import ignore_status, ray_is_running


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_a_drilled_run_recovers_and_is_not_touched(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"examples_per_step": 12, "num_workers": 2, "zero_stage": 3})
    prepare(config, ray_is_running)
    folder = RunFolder.from_config(config).path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = run_fault_drill(config, ignore_status, ray_is_running)
    assert found.passed
    # Whole epochs of the six packs there are.
    assert found.num_steps == 12 >= NUM_STEPS
    assert found.num_rows > find_packs(RunFolder.from_config(config)).num_examples
    # Killed with 5 steps done, of which 3 were in a checkpoint.
    assert found.num_wasted in (2, 3)
    assert 1 < found.seconds < 60
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_run_that_is_not_prepared_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match=r"run `instruct-ray prepare`"):
        run_fault_drill(make_config(), ignore_status, ray_is_running)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"a": [1.0, 2.0]}, 0.0),
        ({"a": [1.0, 2.5]}, 0.5),
        ({"a": [1.0, float("nan")]}, float("inf")),
        ({"b": [1.0]}, float("inf")),
    ],
)
def test_weights_are_compared(tmp_path: Path, other: dict[str, list[float]], difference: float) -> None:
    for name, weights in (("one", {"a": [1.0, 2.0]}), ("other", other)):
        (tmp_path / name).mkdir()
        tensors = {key: torch.tensor(value) for key, value in weights.items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert _difference(tmp_path / "one", tmp_path / "other") == difference


@pytest.mark.parametrize(("has_same_rows", "difference"), [(False, 0.0), (True, 1e-9), (True, float("inf"))])
def test_any_trace_of_the_kill_fails(has_same_rows: bool, difference: float) -> None:
    assert not DrillReport(8, 96, 2, 5.0, has_same_rows, difference).passed
