"""A compiled model trains the same."""

import shutil
from collections.abc import Callable

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.training.driver.tune import tune
from tests.fakes import ignore_status, ray_is_running
from tests.training.driver.test_tune import read_metrics

pytestmark = [
    pytest.mark.usefixtures("ray_4_cpus"),
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler"),
]


def test_compiling_does_not_change_losses(make_config: Callable[..., Config]) -> None:
    losses = []
    for is_compiled in (False, True):
        train = {"zero_stage": 1, "precision": "fp32", "num_workers": 2, "compile": is_compiled}
        config = make_config(run={"name": f"compiled-{is_compiled}"}, train=train)
        prepare(config, ray_is_running)
        tune(config, ignore_status, ray_is_running)
        losses.append([record["loss"] for record in read_metrics(config)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
