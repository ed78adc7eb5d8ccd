"""worker, all ranks: loads the model to train from a base folder, with all its weights or with LoRA adapters.

The validation task loads it the same way; the driver builds it on the meta device to estimate memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.training.model.chunked_attention import register_chunked_attention
from instruct_ray.training.model.lora import add_new_adapter, load_adapter_for_training
from instruct_ray.training.model.trained_parts import freeze_other_modalities

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_model(
    base_dir: Path,
    lora: LoraConfig | None,
    train: TrainConfig,
    dtype: torch.dtype,
    seed: int,
    attn_implementation: str,
    adapter_dir: Path | None = None,
    token_ids: Sequence[int] = (),
) -> torch.nn.Module:
    """Load the base model for training, with the adapter in `adapter_dir` or a new one if `lora` is given.

    A new adapter has the same random values on every rank, and also trains the rows of `token_ids`.
    """
    register_chunked_attention()
    options = _four_bit_options(dtype) if lora is not None and lora.quantize else {}
    model: torch.nn.Module = load_causal_lm(base_dir, dtype, attn_implementation=attn_implementation, **options)
    _prepare_base(model, train)
    if lora is None:
        return model
    torch.manual_seed(seed)
    if adapter_dir is not None:
        return load_adapter_for_training(model, adapter_dir, lora)
    return add_new_adapter(model, lora, token_ids, base_dir)


def build_meta_model(
    hf_config: Any,
    lora: LoraConfig | None,
    train: TrainConfig,
    dtype: torch.dtype,
    attn_implementation: str,
    token_ids: Sequence[int] = (),
) -> torch.nn.Module:
    """Build the model that `load_model` returns on the meta device, without weights."""
    register_chunked_attention()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            hf_config, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=False
        )
        # peft creates adapters in fp32; `load_model` gets them in the precision of the base, this model only by a cast.
        _prepare_base(model, train)
        return model if lora is None else add_new_adapter(model, lora, token_ids).to(dtype)


def _four_bit_options(dtype: torch.dtype) -> dict[str, Any]:
    """QLoRA (Dettmers et al. 2023): NF4 with quantized scales, computing in `dtype`."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": quantization, "device_map": {"": device}}


def _prepare_base(model: torch.nn.Module, train: TrainConfig) -> None:
    model.train()
    freeze_other_modalities(model)
    if train.activation_checkpointing:
        # Reentrant checkpointing computes no gradients when the embeddings are frozen.
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
