"""What text trains of a model with parts for images, and which layers LoRA adapts."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, MambaConfig, PreTrainedConfig

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.errors import InputError
from instruct_ray.training.model.load import build_meta_model
from instruct_ray.training.model.padded import padded_loss
from instruct_ray.training.model.requirements import check_lora_targets
from instruct_ray.training.model.trained_parts import adaptable_layer_names, freeze_other_modalities
from tests.training.tiny_models import CONFIGS, CPU, EXAMPLES, SIZES

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MULTIMODAL = Gemma3Config(
    text_config=Gemma3TextConfig(**SIZES).to_dict(),
    vision_config={**VISION, "image_size": 28, "patch_size": 14},
    mm_tokens_per_image=4,
    image_token_index=63,
    boi_token_index=62,
    eoi_token_index=61,
)
MAMBA = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
[PACK] = pack_examples(EXAMPLES[:4], 64)


def test_parts_for_images_are_frozen_and_the_rest_gets_gradients() -> None:
    model = AutoModelForCausalLM.from_config(MULTIMODAL)
    freeze_other_modalities(model)
    padded_loss(model, PACK, CPU).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert not any("vision" in name or "projector" in name for name in trained)
    # Without parts for images nothing is frozen.
    text_model = AutoModelForCausalLM.from_config(CONFIGS["gemma3"])
    freeze_other_modalities(text_model)
    assert all(parameter.requires_grad for parameter in text_model.parameters())


@pytest.mark.parametrize("targets", [None, ("q_proj",)])
def test_adapters_are_put_on_the_text_model_only(targets: tuple[str, ...] | None) -> None:
    lora = LoraConfig(rank=2, targets=targets)
    model = build_meta_model(MULTIMODAL, lora, TrainConfig(), torch.float32, "sdpa")
    adapters = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapters
    assert all(".language_model." in name and "lora_" in name for name in adapters)
    assert all(".language_model." in name for name in adaptable_layer_names(MULTIMODAL))


def test_layers_of_mamba_kernels_are_left_out() -> None:
    model = build_meta_model(MAMBA, LoraConfig(rank=2), TrainConfig(), torch.float32, "eager")
    adapted = {re.sub(r".*\.(\w+)\.lora_.*", r"\1", name) for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == {"in_proj", "x_proj", "dt_proj"}
    with pytest.raises(InputError, match=r"mamba has no out_proj that LoRA can adapt, only dt_proj, in_proj, x_proj"):
        check_lora_targets(MAMBA, ["out_proj"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_other_models_are_adapted_in_all_linear_layers(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head}
    assert adaptable_layer_names(config) == linear
