"""Base folder -> the model to train, whole or with LoRA adapters."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from instruct_ray.config import LoraConfig
from instruct_ray.errors import InputError


def check_trainable(base: Path) -> None:
    """Refuse architectures whose attention the mask of a pack does not describe.

    Raises:
        InputError: the base has layers that are not full attention.
    """
    config = AutoConfig.from_pretrained(base).to_dict()
    kinds = set(config.get("layer_types") or []) - {"full_attention"}
    if kinds or config.get("sliding_window"):
        raise InputError(
            f"model.base: {config['model_type']} has other than full attention; packs would change its result"
        )


def load_model(base: Path, lora: LoraConfig | None, dtype: torch.dtype, seed: int) -> torch.nn.Module:
    """Load the base for training. Adapters start from the same random values on every rank."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="sdpa")
    model.train()
    if lora is None:
        return model
    torch.manual_seed(seed)
    adapters: Any = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted: torch.nn.Module = get_peft_model(model, adapters)
    return adapted
