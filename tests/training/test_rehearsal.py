"""A short copy of a run; that it is timed and leaves nothing, preflight's tests show."""

from collections.abc import Callable

import pytest

from instruct_ray.config import Config
from instruct_ray.data.prepare import find, prepare
from instruct_ray.training.job import plan_of
from instruct_ray.training.rehearsal import short_plan
from tests.fakes import no_start


@pytest.mark.parametrize(("examples_per_step", "num_steps"), [(1, 12), (12, 12), (48, 8)])
@pytest.mark.usefixtures("ray_4_cpus")
def test_the_short_plan_has_the_steps_of_the_real_one(
    make_config: Callable[..., Config], examples_per_step: int, num_steps: int
) -> None:
    config = make_config(train={"examples_per_step": examples_per_step})
    prepare(config, no_start)
    dataset = find(config)
    plan = short_plan(config, dataset)
    assert plan.packs_per_step == plan_of(config, dataset).packs_per_step
    assert plan.num_steps == num_steps
    assert all(index < dataset.num_packs for step in range(plan.num_steps) for index in plan.packs(step))
