"""A loss that shoots up and stays there ends the run, whether it was interrupted or not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.config.train import LossSpikeConfig
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import connect_mlflow, tracking_uri
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.worker.loss_spikes import LossSpikeDetector, read_recent_losses
from tests.fakes import no_start, say_nothing

SPIKE = LossSpikeConfig(factor=2.0, num_steps=3, window=4)
CALM = [3.0, 2.9, 2.8, 2.7, 2.6, 2.5]


def end(losses: list[float], spike: LossSpikeConfig = SPIKE) -> int | None:
    """The step that ends a run with these losses."""
    watch = LossSpikeDetector(spike, [])
    return next((step for step, loss in enumerate(losses, 1) if watch.add(step, loss)), None)


def test_so_many_steps_in_a_row_end_it() -> None:
    assert end([*CALM, 9.0, 12.0, 15.0, 2.0]) == 9
    watch = LossSpikeDetector(SPIKE, list(enumerate([*CALM, 9.0, 12.0], 1)))
    assert "loss 15 at step 9" in watch.add(9, 15.0)
    assert watch.steps == [7, 8, 9]


@pytest.mark.parametrize(
    "losses",
    [
        [*CALM, 9.0, 12.0, 2.5, 12.0, 15.0, 2.5],
        [1.0, 9.0, 9.0, 9.0],
        [*CALM, 4.0, 4.0, 4.0, 4.0],
        [*CALM, math.nan, math.nan, math.inf],
    ],
    ids=["it comes back", "the beginning", "less than the factor", "steps left out"],
)
def test_what_is_no_spike(losses: list[float]) -> None:
    assert end(losses) is None


def test_steps_left_out_are_passed_over() -> None:
    assert end([*CALM, 9.0, math.nan, 12.0, math.nan, 15.0]) == 11


def test_a_continued_run_decides_as_an_uninterrupted_one(tmp_path: Path) -> None:
    losses = [*CALM, 9.0, 2.4, 2.4, 2.4, 2.4, math.nan, 12.0, 15.0, 30.0]
    expected = end(losses)
    assert expected == 15
    for num_done in range(expected):
        lines = [{"step": step, "loss": loss if math.isfinite(loss) else None} for step, loss in enumerate(losses, 1)]
        metrics = tmp_path / "metrics.jsonl"
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines[:num_done]))
        watch = LossSpikeDetector(SPIKE, read_recent_losses(metrics, SPIKE))
        rest = list(enumerate(losses, 1))[num_done:]
        assert next(step for step, loss in rest if watch.add(step, loss)) == expected


def lines_of(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_it_stops_the_run_and_what_continues_it(make_config: Callable[..., Config]) -> None:
    """A learning rate that no model stands, once the warm-up is over."""
    spike = {"factor": 1.2, "num_steps": 2, "window": 3}
    train = {
        "zero_stage": 1,
        "examples_per_step": 12,
        "epochs": 4,
        "learning_rate": 5.0,
        "warmup_fraction": 0.99,
        "max_grad_norm": 1e9,
        "max_failures": 3,
        "checkpoint_every": 1,
    }
    config = make_config(train=train | {"loss_spike": spike})
    prepare(config, no_start)
    with pytest.raises(RuntimeError, match=r"training stopped: loss .* steps in a row are above .*trained on rows 0:"):
        tune(config, say_nothing, no_start)
    folder, lines = RunFolder.from_config(config), lines_of(config)
    step = lines[-1]["step"]
    assert step < lines[-1]["num_steps"]
    assert not folder.model_dir.exists()
    run_id = json.loads((folder.path / "mlflow.json").read_text())["run_id"]
    assert connect_mlflow(tracking_uri(config)).get_run(run_id).info.status == "FAILED"
    # Its last checkpoint is of the step before: the same step is done again, and ends it again.
    with pytest.raises(RuntimeError, match=rf"training stopped: loss .* at step {step},"):
        tune(config, say_nothing, no_start)
    assert lines_of(config)[-1]["loss"] == lines[-1]["loss"]
    # How patient it is may change.
    assert not tune(make_config(train=train), say_nothing, no_start).already_done
    assert folder.model_dir.exists()
