"""A sustained loss spike stops the run, and a resumed run decides like an uninterrupted one."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.config.train import LossSpikeConfig
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import connect_mlflow, tracking_uri
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.worker.loss_spikes import LossSpikeDetector, read_recent_losses
from tests.fakes import ignore_status, ray_is_running
from tests.training.driver.test_tune import read_metrics

SPIKE = LossSpikeConfig(factor=2.0, num_steps=3, window=4)
STEADY = [3.0, 2.9, 2.8, 2.7, 2.6, 2.5]


def find_stop_step(losses: list[float]) -> int | None:
    """Find the step after which a run with these losses is stopped."""
    detector = LossSpikeDetector(SPIKE, [])
    return next((step for step, loss in enumerate(losses, 1) if detector.add(step, loss)), None)


def test_consecutive_high_losses_stop_the_run() -> None:
    assert find_stop_step([*STEADY, 9.0, 12.0, 15.0, 2.0]) == 9
    detector = LossSpikeDetector(SPIKE, list(enumerate([*STEADY, 9.0, 12.0], 1)))
    spike = detector.add(9, 15.0)
    assert spike is not None
    assert "loss 15 at step 9: the last 3 losses" in spike.message
    assert spike.first_step == 7


@pytest.mark.parametrize(
    "losses",
    [
        [*STEADY, 9.0, 12.0, 2.5, 12.0, 15.0, 2.5],
        [1.0, 9.0, 9.0, 9.0],
        [*STEADY, 4.0, 4.0, 4.0, 4.0],
        [*STEADY, math.nan, math.nan, math.inf],
    ],
    ids=["loss recovers", "window is not full", "below the factor", "skipped steps"],
)
def test_other_losses_do_not_stop_the_run(losses: list[float]) -> None:
    assert find_stop_step(losses) is None


def test_skipped_steps_are_ignored() -> None:
    assert find_stop_step([*STEADY, 9.0, math.nan, 12.0, math.nan, 15.0]) == 11


def test_resumed_run_decides_like_an_uninterrupted_one(tmp_path: Path) -> None:
    losses = [*STEADY, 9.0, 2.4, 2.4, 2.4, 2.4, math.nan, 12.0, 15.0, 30.0]
    expected = find_stop_step(losses)
    assert expected == 15
    for num_trained_steps in range(expected):
        records = [{"step": step, "loss": loss if math.isfinite(loss) else None} for step, loss in enumerate(losses, 1)]
        metrics_file = tmp_path / "metrics.jsonl"
        # A killed attempt wrote two steps more, the last of them not to its end.
        lines = "".join(json.dumps(record) + "\n" for record in records[: num_trained_steps + 2])[:-2]
        metrics_file.write_text(lines)
        detector = LossSpikeDetector(SPIKE, read_recent_losses(metrics_file, num_trained_steps, SPIKE))
        remaining = list(enumerate(losses, 1))[num_trained_steps:]
        assert next(step for step, loss in remaining if detector.add(step, loss)) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_spike_stops_training_and_a_resumed_training(make_config: Callable[..., Config]) -> None:
    """The learning rate is too high for any model once the warm-up is over."""
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
    prepare(config, ray_is_running)
    with pytest.raises(RuntimeError, match=r"training stopped: loss .* losses were each at least .*trained on rows 0:"):
        tune(config, ignore_status, ray_is_running)
    folder, records = RunFolder.from_config(config), read_metrics(config)
    step = records[-1]["step"]
    assert step < records[-1]["num_steps"]
    assert not folder.model_dir.exists()
    run_id = json.loads((folder.path / "mlflow.json").read_text())["run_id"]
    assert connect_mlflow(tracking_uri(config)).get_run(run_id).info.status == "FAILED"
    # The last checkpoint is that of the step before: the same step is trained again, and stops the run again.
    with pytest.raises(RuntimeError, match=rf"training stopped: loss .* at step {step}:"):
        tune(config, ignore_status, ray_is_running)
    assert read_metrics(config)[-1]["loss"] == records[-1]["loss"]
    # train.loss_spike may be changed when a run is resumed.
    assert not tune(make_config(train=train), ignore_status, ray_is_running).already_done
    assert folder.model_dir.exists()
