"""Checkpoints of adapters carry no base, and are continued by any number of workers all the same."""

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
from tests.training.driver.test_tune import metrics_of

pytestmark = [pytest.mark.usefixtures("ray_4_cpus"), pytest.mark.slow]
TRAIN = {"examples_per_step": 12, "epochs": 2, "precision": "fp32", "learning_rate": 1e-2, "checkpoint_every": 2}


def adapter_of(config: Config) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.from_config(config).model_dir / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_adapters_continue_with_another_number_of_workers(make_config: Callable[..., Config], stage: int) -> None:
    def config(name: str, num_workers: int) -> Config:
        train = {**TRAIN, "zero_stage": stage, "num_workers": num_workers}
        made = make_config(run={"name": name}, model={"lora": {"rank": 2}}, train=train)
        prepare(made, ray_is_running)
        tune(made, ignore_status, ray_is_running)
        return made

    whole, stopped = config("whole", 1), config("resized", 2)
    folder = RunFolder.from_config(stopped)
    newest = max(folder.ray_train_dir.glob("checkpoint-*"))
    shards = torch.load(next(newest.rglob("*model_states.pt")), weights_only=False)
    # DeepSpeed knows tied embeddings by one of their names, and leaves the other in.
    assert {name for name in shards["module"] if "lora" not in name} <= {"base_model.model.lm_head.weight"}
    # As if it had been killed after its first checkpoint of the two that are kept.
    shutil.rmtree(folder.model_dir)
    shutil.rmtree(newest)
    resized = config("resized", 1)
    losses = [[line["loss"] for line in metrics_of(each)] for each in (whole, resized)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    expected, found = adapter_of(whole), adapter_of(resized)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
