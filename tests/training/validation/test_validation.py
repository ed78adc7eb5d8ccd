"""Validation during training: results, early stopping and the best checkpoint, at several ZeRO stages."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from instruct_ray.config.schema import Config
from instruct_ray.data.example import IGNORE_INDEX, Example
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.evidence.checkpoint_eval import make_eval_fn
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.tracked_run import load_tracking_record
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.validation.results import read_results
from instruct_ray.training.validation.rows import render_examples, sample_rows
from tests.fakes import ignore_status, ray_is_running
from tests.training.driver.test_tune import read_metrics

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
DATA = {"test_fraction": 0.2, "validation_fraction": 0.2}
TRAIN = {"examples_per_step": 12, "checkpoint_every": 2, "learning_rate": 1e-2}


@torch.inference_mode()
def compute_loss(model: Any, examples: Sequence[Example]) -> float:
    """The mean loss of the completions' tokens, one example after the other."""
    losses = []
    for example in examples:
        inputs, labels = (torch.from_numpy(array).long()[None] for array in example.inputs_and_labels())
        is_target = labels[0] != IGNORE_INDEX
        losses.append(
            cross_entropy(model(input_ids=inputs).logits[0][is_target], labels[0][is_target], reduction="none")
        )
    return float(torch.cat(losses).mean())


def prepare_and_tune(config: Config) -> list[dict[str, float]]:
    """Run both stages with validation, and return the metrics of each step."""
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running, make_eval_fn(config))
    return read_metrics(config)


@pytest.mark.parametrize(
    ("stage", "num_workers", "lora"),
    [(3, 2, None), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 2, {"rank": 4}), (0, 1, None)))],
)
def test_every_checkpoint_is_validated_and_the_best_exported(
    make_config: Callable[..., Config], stage: int, num_workers: int, lora: dict[str, int] | None
) -> None:
    validation = {"num_rows": 8, "num_answers": 2, "max_new_tokens": 4}
    train = {**TRAIN, "zero_stage": stage, "num_workers": num_workers, "epochs": 2, "precision": "fp32"}
    config = make_config(data=DATA, model={"lora": lora}, train=train | {"validation": validation})
    num_steps = len(prepare_and_tune(config))
    folder = RunFolder.from_config(config)
    results = read_results(folder.validation_dir, num_steps + 1)
    expected_steps = sorted({*range(2, num_steps + 1, 2), num_steps})
    assert [result.step for result in results] == expected_steps
    assert results[-1].loss < results[0].loss
    assert all(result.accuracy is not None for result in results)
    client, run_id = mlflow.MlflowClient(tracking_uri(config)), load_tracking_record(config).run_id
    points = sorted(client.get_metric_history(run_id, "validation/loss"), key=lambda point: point.step)
    assert [(point.step, point.value) for point in points] == [(result.step, result.loss) for result in results]
    best = min(results, key=lambda result: result.loss)
    assert json.loads((folder.model_dir / "instruct_ray.json").read_text())["step"] == best.step
    # Plain transformers computes the same loss from the exported folder.
    if lora is None:
        model = AutoModelForCausalLM.from_pretrained(folder.model_dir)
        examples = render_examples(load_renderer(folder.model_dir), sample_rows(folder.validation_rows_file, 8))
        assert compute_loss(model, examples) == pytest.approx(best.loss, rel=1e-5)


@pytest.mark.slow
def test_early_stopping_exports_the_best_checkpoint(make_config: Callable[..., Config]) -> None:
    # The learning rate is so high that the validation loss soon rises.
    train = {**TRAIN, "zero_stage": 1, "epochs": 60, "learning_rate": 0.1, "checkpoint_every": 4}
    validation = {"num_rows": 8, "num_answers": 0, "patience": 2}
    config = make_config(data=DATA, train={**train, "validation": validation})
    metrics = prepare_and_tune(config)
    folder = RunFolder.from_config(config)
    results = read_results(folder.validation_dir, 10**6)
    best = min(results, key=lambda result: result.loss)
    assert len(metrics) < metrics[0]["num_steps"]
    # Two results that are no better than the best; training stops at the checkpoint after them.
    assert [result.step for result in results if result.step > best.step] == [best.step + 4, best.step + 8]
    assert len(metrics) == best.step + 12
    exported, kept = (
        load_file(path / "model.safetensors") for path in (folder.model_dir, folder.validation_dir / "best")
    )
    assert all(torch.equal(kept[name], tensor) for name, tensor in exported.items())
    assert "stopped early" in (folder.path / "events.jsonl").read_text()


@pytest.mark.slow
def test_resumed_run_validates_checkpoints_that_a_killed_run_did_not(make_config: Callable[..., Config]) -> None:
    validation = {"num_rows": 8, "num_answers": 0}
    config = make_config(data=DATA, train={**TRAIN, "zero_stage": 1, "epochs": 3, "validation": validation})
    prepare_and_tune(config)
    folder = RunFolder.from_config(config)
    results = read_results(folder.validation_dir, 10**6)
    # As if the run had been killed before the result of its last checkpoint was written.
    shutil.rmtree(folder.model_dir)
    (folder.validation_dir / f"step-{results[-1].step:07d}.json").unlink()
    tune(config, ignore_status, ray_is_running, make_eval_fn(config))
    assert read_results(folder.validation_dir, 10**6) == results


def failing_eval_fn(folder: Path) -> float:
    raise ValueError("evaluation failed on purpose")


@pytest.mark.slow
def test_training_goes_on_without_validation_but_is_no_success_if_all_fail(
    make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(data=DATA, train={**TRAIN, "validation": {}})
    prepare(config, ray_is_running)
    with pytest.raises(RuntimeError, match="no checkpoint's answers could be generated for validation"):
        tune(config, ignore_status, ray_is_running, failing_eval_fn)
    message = "failed: ValueError: evaluation failed on purpose; training continues without its answers"
    assert message in caplog.text
    assert (RunFolder.from_config(config).model_dir / "model.safetensors").is_file()
    # The model is complete: a second call finds it.
    assert tune(config, ignore_status, ray_is_running, failing_eval_fn).already_done
