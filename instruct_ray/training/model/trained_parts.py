"""pure: which parts of a model text trains, and which of its linear layers LoRA can adapt."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

# peft refuses these names in models of these types: their fused kernels read the weights and pass adapters by.
MAMBA_TYPES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
MAMBA_KERNEL_LAYERS = {"conv1d", "out_proj"}


def is_composite(hf_config: Any) -> bool:
    """Whether a model has parts for other inputs than text, such as images, with a config of their own."""
    return hf_config.get_text_config() is not hf_config


def freeze_other_modalities(model: Any) -> None:
    """Freeze the parts of a model that text never passes through.

    They get no gradient, so an optimizer would keep states for them in vain, and weight decay would change them.
    """
    if not is_composite(model.config):
        return
    trained = {id(parameter) for parameter in model.get_decoder().parameters()}
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        trained |= {id(parameter) for parameter in embeddings.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def adaptable_layer_names(hf_config: Any) -> set[str]:
    """The full names of the linear layers of a model that LoRA can adapt."""
    adaptable, _ = _split_linear_layers(_build_on_meta(hf_config))
    return adaptable


def unadaptable_layer_names(model: Any) -> set[str]:
    """The full names of the linear layers of a model that LoRA must leave alone, besides the output head."""
    _, unadaptable = _split_linear_layers(model)
    return unadaptable


def _split_linear_layers(model: Any) -> tuple[set[str], set[str]]:
    """(those that LoRA can adapt, the others); without the output head."""
    decoder_modules = set(model.get_decoder().modules()) if is_composite(model.config) else set(model.modules())
    kernel_layers = MAMBA_KERNEL_LAYERS if model.config.model_type in MAMBA_TYPES else set()
    head = model.get_output_embeddings()
    adaptable, unadaptable = set[str](), set[str]()
    for name, module in model.named_modules():
        # Conv1D: GPT-2's linear layers.
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            can_adapt = module in decoder_modules and name.rpartition(".")[2] not in kernel_layers
            (adaptable if can_adapt else unadaptable).add(name)
    return adaptable, unadaptable


def _build_on_meta(hf_config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(hf_config, trust_remote_code=False)
