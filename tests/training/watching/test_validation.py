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

from instruct_ray.config import Config
from instruct_ray.data.prepare import prepare
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.evidence.validation import examples_of, held_out_loss, sample, scorer
from instruct_ray.run import RunFolder
from instruct_ray.tracking.client import tracking_uri
from instruct_ray.tracking.tracked_run import load_record
from instruct_ray.training.trainer import tune
from instruct_ray.training.watching.scores import read_scores
from tests.fakes import no_start, say_nothing

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
DATA = {"test_fraction": 0.2, "validation_fraction": 0.2}
TRAIN = {"examples_per_step": 12, "checkpoint_every": 2, "learning_rate": 1e-2}


def run(config: Config) -> list[dict[str, object]]:
    prepare(config, no_start)
    tune(config, say_nothing, no_start, scorer(config))
    return [json.loads(line) for line in RunFolder.of(config).metrics.read_text().splitlines()]


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
    folder = RunFolder.of(config)
    scores = read_scores(folder.scores, num_steps + 1)
    expected = sorted({*range(2, num_steps + 1, 2), num_steps})
    assert [each.step for each in scores] == expected
    assert scores[-1].loss < scores[0].loss
    assert all(each.accuracy is not None for each in scores)
    client, run_id = mlflow.MlflowClient(tracking_uri(config)), load_record(config).run_id
    points = sorted(client.get_metric_history(run_id, "validation/loss"), key=lambda point: point.step)
    assert [(point.step, point.value) for point in points] == [(each.step, each.loss) for each in scores]
    best = min(scores, key=lambda each: each.loss)
    assert json.loads((folder.model / "instruct_ray.json").read_text())["step"] == best.step
    # What was scored is what plain transformers makes of the exported folder.
    if lora is None:
        renderer = load_renderer(folder.model)
        model = AutoModelForCausalLM.from_pretrained(folder.model)
        rows = sample(folder.validation, 8)
        assert held_out_loss(model, examples_of(renderer, rows)) == pytest.approx(best.loss, rel=1e-5)


@pytest.mark.slow
def test_training_that_gets_no_better_stops_and_leaves_its_best(make_config: Callable[..., Config]) -> None:
    # So fast that the loss on other rows rises soon.
    train = {**TRAIN, "zero_stage": 1, "epochs": 60, "learning_rate": 0.1, "checkpoint_every": 4}
    validation = {"num_rows": 8, "num_answers": 0, "patience": 2}
    config = make_config(data=DATA, train={**train, "validation": validation})
    lines = run(config)
    folder = RunFolder.of(config)
    scores = read_scores(folder.scores, 10**6)
    best = min(scores, key=lambda each: each.loss)
    assert len(lines) < int(str(lines[0]["num_steps"]))
    # Two checkpoints that were no better; decided at the one behind them.
    assert [each.step for each in scores if each.step > best.step] == [best.step + 4, best.step + 8]
    assert len(lines) == best.step + 12
    ours, kept = (load_file(path / "model.safetensors") for path in (folder.model, folder.scores / "best"))
    assert all(torch.equal(kept[name], tensor) for name, tensor in ours.items())
    assert "stopped early" in (folder.path / "notices.jsonl").read_text()


@pytest.mark.slow
def test_scores_that_a_killed_run_lost_are_made_up_for(make_config: Callable[..., Config]) -> None:
    validation = {"num_rows": 8, "num_answers": 0}
    config = make_config(data=DATA, train={**TRAIN, "zero_stage": 1, "epochs": 3, "validation": validation})
    run(config)
    folder = RunFolder.of(config)
    before = read_scores(folder.scores, 10**6)
    # As if it had been killed before its last checkpoint's scores were there.
    shutil.rmtree(folder.model)
    (folder.scores / f"step-{before[-1].step:07d}.json").unlink()
    tune(config, say_nothing, no_start, scorer(config))
    assert read_scores(folder.scores, 10**6) == before


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
    assert (RunFolder.of(config).model / "model.safetensors").is_file()
