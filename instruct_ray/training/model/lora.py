"""LoRA adapters of a model: new ones, or those that an earlier run left."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model

from instruct_ray.config.schema import LoraConfig
from instruct_ray.errors import InputError


def add_new_adapter(model: torch.nn.Module, lora: LoraConfig) -> torch.nn.Module:
    """Adapters with random values on a model whose own weights are frozen."""
    adapters: Any = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets is None else list(lora.targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    # In the base's precision: at stage 3 DeepSpeed leaves parameters as they are, below it it would cast them.
    adapted: torch.nn.Module = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return adapted


def load_adapter_for_training(model: torch.nn.Module, folder: Path, lora: LoraConfig) -> torch.nn.Module:
    """The adapters in a folder, to be trained on; only their dropout is this run's own."""
    adapters: Any = PeftLoraConfig.from_pretrained(str(folder))
    adapters.lora_dropout = lora.dropout
    adapters.inference_mode = False
    # Where its base lies now.
    adapters.base_model_name_or_path = model.name_or_path
    adapted: torch.nn.Module = PeftModel.from_pretrained(
        model, str(folder), is_trainable=True, config=adapters, torch_device="cpu", autocast_adapter_dtype=False
    )
    return adapted


def check_adapter_matches(folder: Path, lora: LoraConfig | None, linear_layers: set[str]) -> None:
    """
    Raises:
        InputError: `model.lora` describes other adapters than those in the folder; names the first key that differs.
    """
    if lora is None:
        raise InputError(
            f"model.lora: model.base is the adapter {folder}, which is trained on with a model.lora like its own; to "
            "train all weights, take a run with model.lora.merge=true as the base"
        )
    saved: Any = PeftLoraConfig.from_pretrained(str(folder))
    pairs = {
        "rank": (lora.rank, saved.r),
        "alpha": (lora.alpha, saved.lora_alpha),
        "rslora": (lora.rslora, saved.use_rslora),
        "dora": (lora.dora, saved.use_dora),
    }
    for key, (wanted, found) in pairs.items():
        if wanted != found:
            raise InputError(
                f"model.lora.{key}: {wanted} here, {found} in the adapter {folder}; write model.lora like it"
            )
    wanted_layers = linear_layers if lora.targets is None else _matching(linear_layers, lora.targets)
    if difference := sorted(wanted_layers ^ _matching(linear_layers, saved.target_modules)):
        raise InputError(
            f"model.lora.targets: {len(difference)} layers, {difference[0]} among them, are adapted either here or in "
            f"the adapter {folder}; write the same targets"
        )


def _matching(layers: set[str], targets: Any) -> set[str]:
    """The layers that peft adapts for a list of names or ends of names."""
    return {layer for layer in layers if any(layer == name or layer.endswith(f".{name}") for name in targets)}
