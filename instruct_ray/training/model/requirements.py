"""pure: what a base model must have to be trained, which attention it uses, and whether it can be packed."""

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from instruct_ray.base_model.causal_lm import (
    causal_lm_class,
    default_attn_implementation,
    takes_registered_attention,
)
from instruct_ray.config.schema import LoraConfig
from instruct_ray.errors import InputError
from instruct_ray.training.model.chunked_attention import TREE_CHUNKS, register_chunked_attention
from instruct_ray.training.model.trained_parts import adaptable_layer_names
from instruct_ray.training.model.tree_mask import FLEX, MaskLayout

# Layer types that the mask of a pack can describe.
PACKED_LAYER_TYPES = {"full_attention", "sliding_attention"}
# FlexAttention's kernels for GPUs take no smaller head dimension (torch 2.13).
MIN_FLEX_HEAD_DIM = 16
# Arguments of a model's forward pass that both packed and padded training need.
FORWARD_ARGUMENTS = ("input_ids", "attention_mask", "logits_to_keep")


def check_trainable(hf_config: Any) -> None:
    """Check that this system can train a base model.

    Raises:
        InputError: it is not a causal language model, its forward pass lacks an argument that training needs, it can't
            be asked once it is tuned, or its sliding window has no size.
    """
    if not causal_lm_class(hf_config)._supports_default_dynamic_cache():
        raise InputError(
            f"model.base: transformers generates with {hf_config.model_type} without its usual cache, so prompts of "
            "different lengths can't share a batch, and the tuned model could not be evaluated or served; use another "
            "architecture"
        )
    missing = [name for name in FORWARD_ARGUMENTS if name not in _forward_arguments(hf_config)]
    if missing:
        raise InputError(f"model.base: the forward pass of {hf_config.model_type} does not take {', '.join(missing)}")
    MaskLayout.from_hf_config(hf_config, default_attn_implementation(hf_config), torch.float32)


def check_lora_targets(hf_config: Any, targets: Sequence[str]) -> None:
    """Check that the base model has linear layers of these names that LoRA can adapt.

    Raises:
        InputError: it has none of some name; lists the names it has.
    """
    names = {layer.rpartition(".")[2] for layer in adaptable_layer_names(hf_config)}
    unknown = sorted(set(targets) - names)
    if unknown:
        raise InputError(
            f"model.lora.targets: {hf_config.model_type} has no {', '.join(unknown)} that LoRA can adapt, only "
            f"{', '.join(sorted(names))}"
        )


def check_quantization_available(lora: LoraConfig) -> None:
    """Check that the library for `model.lora.quantize` is installed, if it is needed.

    Raises:
        InputError: it is not.
    """
    if lora.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.lora.quantize: needs bitsandbytes on every node (pip install 'instruct-ray[qlora]')")


def find_packing_incompatibility(hf_config: Any, max_tokens: int) -> str | None:
    """Why packing would change what a model computes, as far as its config shows; None if nothing is known.

    `max_tokens` is the length of the longest example. Models without a known reason still go through the packing check
    (packing_check.py).
    """
    reasons = "; ".join(_incompatibilities(hf_config, max_tokens))
    return f"{hf_config.model_type}: {reasons}" if reasons else None


def _incompatibilities(hf_config: Any, max_tokens: int) -> Iterator[str]:
    settings = hf_config.get_text_config().to_dict()
    unsupported = sorted(set(settings.get("layer_types") or ()) - PACKED_LAYER_TYPES)
    if unsupported:
        yield f"layers of type {', '.join(unsupported)}, which a mask can't describe"
    elif causal_lm_class(hf_config)._is_stateful:
        yield "recurrent layers, whose state would carry over from one example to the next"
    if settings.get("attention_chunk_size"):
        yield "chunked attention (attention_chunk_size)"
    if "local" in (settings.get("attention_layers") or ()):
        yield "local attention by index in the input (attention_layers)"
    if settings.get("output_router_logits") and settings.get("router_aux_loss_coef"):
        # Only this flag adds it to the loss. Without it experts are chosen per token, which packing does not change.
        yield "an auxiliary router loss, a mean over all tokens (output_router_logits)"
    if "position_ids" not in _forward_arguments(hf_config) or settings.get("alibi"):
        yield "positions counted by index in the input (no position_ids)"
    if settings.get("use_bidirectional_attention"):
        yield "attention to later tokens (use_bidirectional_attention)"
    for rope in _rope_parameters(settings):
        limit = rope.get("original_max_position_embeddings") or settings.get("max_position_embeddings")
        if rope.get("rope_type") in ("dynamic", "longrope") and limit is not None and max_tokens > limit:
            yield f"{rope['rope_type']} positions, which depend on the longest example if it exceeds {limit} tokens"


def _rope_parameters(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rotary parameters of a config; some models have several, by layer type."""
    rope = settings.get("rope_parameters") or {}
    return [value for value in rope.values() if isinstance(value, dict)] if "rope_type" not in rope else [rope]


def _forward_arguments(hf_config: Any) -> set[str]:
    return set(inspect.signature(causal_lm_class(hf_config).forward).parameters)


def aux_loss_coef(hf_config: Any) -> float:
    """The weight of the auxiliary router loss in training; 0 if the config does not enable it."""
    settings = hf_config.get_text_config().to_dict()
    return float(settings.get("router_aux_loss_coef") or 0.0) if settings.get("output_router_logits") else 0.0


def packed_attn_implementation(hf_config: Any, device: torch.device) -> str:
    """The attention implementation for packs: flex_attention on a GPU, chunks of queries on a CPU, if supported.

    FlexAttention has no backward pass on CPU (torch 2.13), no dropout and no small heads; sdpa and the chunks have no
    softcapping (Gemma 2), and architectures with attention of their own (Falcon) know neither.
    """
    default = default_attn_implementation(hf_config)
    if device.type == "cpu":
        register_chunked_attention()
        return TREE_CHUNKS if default == "sdpa" and takes_registered_attention(hf_config) else default
    text_config = hf_config.get_text_config()
    settings = text_config.to_dict()
    has_dropout = bool(settings.get("attention_dropout"))
    head_dim = settings.get("head_dim") or text_config.hidden_size // text_config.num_attention_heads
    can_flex = causal_lm_class(hf_config)._supports_flex_attn and not has_dropout and head_dim >= MIN_FLEX_HEAD_DIM
    return FLEX if can_flex else default
