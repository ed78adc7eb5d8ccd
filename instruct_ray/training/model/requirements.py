"""Base folder -> the model to train, whole or with LoRA adapters; how it attends, and whether packs suit it."""

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from instruct_ray.config.schema import LoraConfig
from instruct_ray.errors import InputError
from instruct_ray.training.model.chunked_attention import TREE_CHUNKS, register_chunked_attention
from instruct_ray.training.model.tree_mask import FLEX, MaskLayout

# What a pack's masks describe.
PACKED_LAYERS = {"full_attention", "sliding_attention"}
# What both ways of training hand to a model.
FORWARD_ARGUMENTS = ("input_ids", "attention_mask", "logits_to_keep")


def check_trainable(hf_config: Any) -> None:
    """Refuse a base model that this system can't train.

    Raises:
        InputError: it is no causal language model, its forward pass takes no attention mask or no choice of positions
            for the output head, or its sliding window has no length.
    """
    config = hf_config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"model.base: {config.model_type} is no causal language model of transformers")
    missing = [name for name in FORWARD_ARGUMENTS if name not in _forward_arguments(config)]
    if missing:
        raise InputError(f"model.base: the forward pass of {config.model_type} takes no {', '.join(missing)}")
    MaskLayout.from_hf_config(config, default_attn_implementation(config), torch.float32)


def check_lora_targets(config: Any, targets: Sequence[str]) -> None:
    """
    Raises:
        InputError: the base has no linear layer of such a name; names those it has.
    """
    names = {layer.rpartition(".")[2] for layer in linear_layer_names(config)}
    unknown = sorted(set(targets) - names)
    if unknown:
        raise InputError(
            f"model.lora.targets: {config.model_type} has no {', '.join(unknown)}, only {', '.join(sorted(names))}"
        )


def linear_layer_names(config: Any) -> set[str]:
    """The linear layers of an architecture by their full names, without the output head."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    # Conv1D: GPT-2's linear layers.
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def check_quantization_available(lora: LoraConfig) -> None:
    """
    Raises:
        InputError: the base is to be quantized, and what does it is not installed.
    """
    if lora.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.lora.quantize: needs bitsandbytes on every node (pip install 'instruct-ray[qlora]')")


def find_packing_incompatibility(config: Any, max_tokens: int) -> str | None:
    """What about an architecture packs would change, in words; None if they change nothing.

    `max_tokens` is the longest example. What has no obstacle is still proved (proof.py).
    """
    found = "; ".join(_incompatibilities(config, max_tokens))
    return f"{config.model_type}: {found}" if found else None


def _incompatibilities(config: Any, max_tokens: int) -> Iterator[str]:
    text = config.get_text_config().to_dict()
    others = sorted(set(text.get("layer_types") or ()) - PACKED_LAYERS)
    if others:
        yield f"layers of {', '.join(others)}, which no mask describes"
    elif MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._is_stateful:
        yield "recurrent layers, whose state runs through the whole pack"
    if text.get("attention_chunk_size"):
        yield "chunked attention (attention_chunk_size)"
    if "local" in (text.get("attention_layers") or ()):
        yield "local attention by place in the input (attention_layers)"
    if text.get("output_router_logits") and text.get("router_aux_loss_coef"):
        # Only this flag adds it to the loss; without it experts are chosen token by token, which packs do not change.
        yield "an auxiliary loss of the router, a mean over all tokens (output_router_logits)"
    if "position_ids" not in _forward_arguments(config) or text.get("alibi"):
        yield "positions counted by place in the input (no position_ids)"
    if text.get("use_bidirectional_attention"):
        yield "attention to later tokens (use_bidirectional_attention)"
    for rope in _ropes(text):
        limit = rope.get("original_max_position_embeddings") or text.get("max_position_embeddings")
        if rope.get("rope_type") in ("dynamic", "longrope") and limit is not None and max_tokens > limit:
            yield f"{rope['rope_type']} positions, which depend on the longest example beyond {limit} tokens"


def _ropes(text: dict[str, Any]) -> list[dict[str, Any]]:
    """Rotary parameters; some models have several, by kind of layer."""
    rope = text.get("rope_parameters") or {}
    return [value for value in rope.values() if isinstance(value, dict)] if "rope_type" not in rope else [rope]


def _forward_arguments(config: Any) -> set[str]:
    return set(inspect.signature(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].forward).parameters)


def aux_loss_coef(config: Any) -> float:
    """Weight of the router's auxiliary loss in training; 0 where the configuration does not ask for one."""
    text = config.get_text_config().to_dict()
    return float(text.get("router_aux_loss_coef") or 0.0) if text.get("output_router_logits") else 0.0


def default_attn_implementation(config: Any) -> str:
    """The attention implementation for one example alone or a padded batch: sdpa where the model can."""
    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"


def packed_attn_implementation(config: Any, device: torch.device) -> str:
    """The attention implementation for packs: flex_attention on a GPU, chunks of queries on a CPU, where the model can.

    FlexAttention's backward pass does not exist on CPU (torch 2.13), and it has no dropout; neither sdpa nor the chunks
    have softcapping (Gemma 2).
    """
    plain = default_attn_implementation(config)
    if device.type == "cpu":
        register_chunked_attention()
        return TREE_CHUNKS if plain == "sdpa" else plain
    can_flex = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_flex_attn
    has_dropout = bool(config.get_text_config().to_dict().get("attention_dropout"))
    return FLEX if can_flex and not has_dropout else plain
