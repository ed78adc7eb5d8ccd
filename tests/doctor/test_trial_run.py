"""The plan of a trial run. Timing a trial run is tested with the checks, in tests/training/capacity/test_checks.py."""

from collections.abc import Callable

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.doctor.trial_run import trial_plan
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.build_spec import build_plan
from tests.fakes import ray_is_running


@pytest.mark.parametrize(("examples_per_step", "num_steps"), [(1, 12), (12, 12), (48, 8)])
@pytest.mark.usefixtures("ray_4_cpus")
def test_trial_plan_has_the_step_size_of_the_run(
    make_config: Callable[..., Config], examples_per_step: int, num_steps: int
) -> None:
    config = make_config(train={"examples_per_step": examples_per_step})
    prepare(config, ray_is_running)
    packs = find_packs(RunFolder.from_config(config))
    plan = trial_plan(config, packs)
    assert plan.packs_per_step == build_plan(config, packs).packs_per_step
    assert plan.num_steps == num_steps
    assert all(index < packs.num_packs for step in range(plan.num_steps) for index in plan.step_packs(step))
