"""worker, all ranks: a base folder -> the model to train, whole or with LoRA adapters."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.training.model.chunked_attention import register_chunked_attention
from instruct_ray.training.model.lora import add_new_adapter, load_adapter_for_training

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_model(
    base: Path,
    lora: LoraConfig | None,
    train: TrainConfig,
    dtype: torch.dtype,
    seed: int,
    implementation: str,
    adapter: Path | None = None,
) -> torch.nn.Module:
    """Load the base for training, with the adapter that is trained on or a new one, which starts from the same random
    values on every rank."""
    register_chunked_attention()
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        attn_implementation=implementation,
        **(_in_four_bits(dtype) if lora is not None and lora.quantize else {}),
    )
    return _to_train(model, lora, train, seed, adapter)


def _in_four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """QLoRA (Dettmers et al. 2023): NF4, its scales quantized again, computed in `dtype`."""
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": quantized, "device_map": {"": device}}


def build_meta_model(
    architecture: Any, lora: LoraConfig | None, train: TrainConfig, dtype: torch.dtype, implementation: str
) -> torch.nn.Module:
    """What `load_model` would return, without content, on the meta device."""
    register_chunked_attention()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=implementation)
        # peft makes adapters in fp32 and brings them to the precision of the base, here too late.
        return _to_train(model, lora, train, seed=0).to(dtype)


def _to_train(
    model: torch.nn.Module, lora: LoraConfig | None, train: TrainConfig, seed: int, adapter: Path | None = None
) -> torch.nn.Module:
    model.train()
    if train.activation_checkpointing:
        # Reentrant ones would not reach the weights behind frozen embeddings.
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if lora is None:
        return model
    torch.manual_seed(seed)
    return add_new_adapter(model, lora) if adapter is None else load_adapter_for_training(model, adapter, lora)
