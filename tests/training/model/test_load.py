"""The model that is loaded for training: its adapters, and activation checkpointing."""

import re
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.training.model.load import load_model


def load(base_dir: Path, lora: LoraConfig | None = None, **train: object) -> torch.nn.Module:
    return load_model(base_dir, lora, TrainConfig.model_validate(train), torch.float32, 0, "sdpa")


def test_adapters_are_added_to_the_target_layers(base_folder: Path) -> None:
    def adapted_layers(lora: LoraConfig) -> set[str]:
        names = (name for name, weight in load(base_folder, lora).named_parameters() if weight.requires_grad)
        return {match[1] for name in names if (match := re.search(r"(\w+)\.lora_A", name))}

    assert adapted_layers(LoraConfig(targets=("q_proj", "v_proj"))) == {"q_proj", "v_proj"}
    assert {"q_proj", "down_proj"} < adapted_layers(LoraConfig())
    assert "lm_head" not in adapted_layers(LoraConfig())


def test_rslora_scales_by_the_square_root_of_the_rank(base_folder: Path) -> None:
    for rslora, scale in ((False, 8 / 16), (True, 8 / 4)):
        model = load(base_folder, LoraConfig(rank=16, alpha=8, rslora=rslora))
        scales = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
        assert scales == {scale}


def test_dora_trains_magnitudes(base_folder: Path) -> None:
    model = load(base_folder, LoraConfig(dora=True))
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert any("magnitude" in name for name in names)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_activation_checkpointing_does_not_change_gradients(base_folder: Path, lora: LoraConfig | None) -> None:
    gradients = []
    for is_enabled in (False, True):
        model = load(base_folder, lora, activation_checkpointing=is_enabled)
        ids = torch.arange(5, 25)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
