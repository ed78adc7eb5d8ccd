"""Checkpoints of adapters hold no base weights, and any number of workers can resume from them."""

import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.tune import tune
from tests.fakes import ignore_status, ray_is_running
from tests.training.driver.test_tune import read_metrics

pytestmark = [pytest.mark.usefixtures("ray_4_cpus"), pytest.mark.slow]
TRAIN = {"examples_per_step": 12, "epochs": 2, "precision": "fp32", "learning_rate": 1e-2, "checkpoint_every": 2}


def load_adapter(config: Config) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.from_config(config).model_dir / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_adapters_resume_with_another_number_of_workers(make_config: Callable[..., Config], stage: int) -> None:
    def train_run(name: str, num_workers: int) -> Config:
        train = {**TRAIN, "zero_stage": stage, "num_workers": num_workers}
        config = make_config(run={"name": name}, model={"lora": {"rank": 2}}, train=train)
        prepare(config, ray_is_running)
        tune(config, ignore_status, ray_is_running)
        return config

    uninterrupted, resized = train_run("uninterrupted", 1), train_run("resized", 2)
    folder = RunFolder.from_config(resized)
    newest = max(folder.ray_train_dir.glob("checkpoint-*"))
    shards = torch.load(next(newest.rglob("*model_states.pt")), weights_only=False)
    # DeepSpeed knows tied embeddings by one of their names, and keeps the other in the checkpoint.
    assert {name for name in shards["module"] if "lora" not in name} <= {"base_model.model.lm_head.weight"}
    # As if the run had been killed after the first of its two checkpoints.
    shutil.rmtree(folder.model_dir)
    shutil.rmtree(newest)
    resized = train_run("resized", 1)
    losses, losses_resized = ([line["loss"] for line in read_metrics(config)] for config in (uninterrupted, resized))
    assert losses_resized == pytest.approx(losses, rel=1e-4)
    expected, adapter = load_adapter(uninterrupted), load_adapter(resized)
    assert expected.keys() == adapter.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-3, atol=1e-5)
