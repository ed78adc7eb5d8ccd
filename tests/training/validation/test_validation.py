"""Validation beside a real training: scores, early stopping, the best checkpoint, at ZeRO-3 too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.evidence.checkpoint_eval import compute_loss, make_eval_fn, render_examples, sample_rows
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.tracked_run import load_tracking_record
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.validation.results import read_results
from tests.fakes import no_start, say_nothing

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
DATA = {"test_fraction": 0.2, "validation_fraction": 0.2}
TRAIN = {"examples_per_step": 12, "checkpoint_every": 2, "learning_rate": 1e-2}


def run(config: Config) -> list[dict[str, object]]:
    prepare(config, no_start)
    tune(config, say_nothing, no_start, make_eval_fn(config))
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "num_workers", "lora"),
    [(3, 2, None), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 2, {"rank": 4}), (0, 1, None)))],
)
def test_each_checkpoint_is_scored_and_the_best_exported(
    make_config: Callable[..., Config], stage: int, num_workers: int, lora: dict[str, int] | None
) -> None:
    validation = {"num_rows": 8, "num_answers": 2, "max_new_tokens": 4}
    train = {**TRAIN, "zero_stage": stage, "num_workers": num_workers, "epochs": 2, "precision": "fp32"}
    config = make_config(data=DATA, model={"lora": lora}, train=train | {"validation": validation})
    num_steps = len(run(config))
    folder = RunFolder.from_config(config)
    scores = read_results(folder.validation_dir, num_steps + 1)
    expected = sorted({*range(2, num_steps + 1, 2), num_steps})
    assert [each.step for each in scores] == expected
    assert scores[-1].loss < scores[0].loss
    assert all(each.accuracy is not None for each in scores)
    client, run_id = mlflow.MlflowClient(tracking_uri(config)), load_tracking_record(config).run_id
    points = sorted(client.get_metric_history(run_id, "validation/loss"), key=lambda point: point.step)
    assert [(point.step, point.value) for point in points] == [(each.step, each.loss) for each in scores]
    best = min(scores, key=lambda each: each.loss)
    assert json.loads((folder.model_dir / "instruct_ray.json").read_text())["step"] == best.step
    # What was scored is what plain transformers makes of the exported folder.
    if lora is None:
        renderer = load_renderer(folder.model_dir)
        model = AutoModelForCausalLM.from_pretrained(folder.model_dir)
        rows = sample_rows(folder.validation_rows_file, 8)
        assert compute_loss(model, render_examples(renderer, rows)) == pytest.approx(best.loss, rel=1e-5)


@pytest.mark.slow
def test_training_that_gets_no_better_stops_and_leaves_its_best(make_config: Callable[..., Config]) -> None:
    # So fast that the loss on other rows rises soon.
    train = {**TRAIN, "zero_stage": 1, "epochs": 60, "learning_rate": 0.1, "checkpoint_every": 4}
    validation = {"num_rows": 8, "num_answers": 0, "patience": 2}
    config = make_config(data=DATA, train={**train, "validation": validation})
    lines = run(config)
    folder = RunFolder.from_config(config)
    scores = read_results(folder.validation_dir, 10**6)
    best = min(scores, key=lambda each: each.loss)
    assert len(lines) < int(str(lines[0]["num_steps"]))
    # Two checkpoints that were no better; decided at the one behind them.
    assert [each.step for each in scores if each.step > best.step] == [best.step + 4, best.step + 8]
    assert len(lines) == best.step + 12
    ours, kept = (load_file(path / "model.safetensors") for path in (folder.model_dir, folder.validation_dir / "best"))
    assert all(torch.equal(kept[name], tensor) for name, tensor in ours.items())
    assert "stopped early" in (folder.path / "notices.jsonl").read_text()


@pytest.mark.slow
def test_scores_that_a_killed_run_lost_are_made_up_for(make_config: Callable[..., Config]) -> None:
    validation = {"num_rows": 8, "num_answers": 0}
    config = make_config(data=DATA, train={**TRAIN, "zero_stage": 1, "epochs": 3, "validation": validation})
    run(config)
    folder = RunFolder.from_config(config)
    before = read_results(folder.validation_dir, 10**6)
    # As if it had been killed before its last checkpoint's scores were there.
    shutil.rmtree(folder.model_dir)
    (folder.validation_dir / f"step-{before[-1].step:07d}.json").unlink()
    tune(config, say_nothing, no_start, make_eval_fn(config))
    assert read_results(folder.validation_dir, 10**6) == before


def failing(folder: Path) -> tuple[float, float | None]:
    raise ValueError("no scores today")


@pytest.mark.slow
def test_a_validation_that_fails_is_said_and_does_not_stop_the_training(
    make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(data=DATA, train={**TRAIN, "validation": {}})
    prepare(config, no_start)
    tune(config, say_nothing, no_start, failing)
    assert "failed, and does not count: ValueError: no scores today" in caplog.text
    assert (RunFolder.from_config(config).model_dir / "model.safetensors").is_file()
