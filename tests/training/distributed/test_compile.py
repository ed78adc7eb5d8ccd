"""A compiled model trains the same."""

import shutil
from collections.abc import Callable

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.training.driver.tune import tune
from tests.fakes import no_start, say_nothing
from tests.training.driver.test_tune import metrics_of

pytestmark = [
    pytest.mark.usefixtures("ray_4_cpus"),
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler"),
]


def test_compiled_and_not_train_the_same(make_config: Callable[..., Config]) -> None:
    losses = []
    for compiled in (False, True):
        train = {"zero_stage": 1, "precision": "fp32", "num_workers": 2, "compile": compiled}
        config = make_config(run={"name": f"compiled-{compiled}"}, train=train)
        prepare(config, no_start)
        tune(config, say_nothing, no_start)
        losses.append([line["loss"] for line in metrics_of(config)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
