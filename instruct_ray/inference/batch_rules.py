"""Which requests may share a batch of a model, so that each is answered as it would be alone.

Prompts of different lengths are padded on the left. That changes nothing for a model that takes its positions from the
mask or from differences of positions (rotary, ALiBi), with full, sliding or chunked attention. Three things can break
it, and the model's class and configuration show them:

* positions counted by index in the input, as of some learned positions, and recurrent states, which read the padding;
* computations that depend on the longest request of a batch (rotary positions scaled by length, temperatures by index);
* caches that hold more than one key and value per token, so that a shared prefix can't be repeated.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from instruct_ray.inference.engine import GenerationRequest

# Rotary positions whose frequencies depend on the number of tokens.
SCALED_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class BatchRules:
    """What requests that share a batch of a model must have in common."""

    shares_prefix: bool = True
    """Whether the keys and values of a prefix can be computed once for all prompts that begin with it."""
    pads: bool = True
    """Whether prompts may differ in length."""
    longest_in_batch: int | None = None
    """Requests that may get more tokens than this, prompt and completion together, are answered alone."""
    allows_joining: bool = False
    """Whether requests can join a batch that is running, and leave it before it ends."""

    @classmethod
    def from_model(cls, model: Any) -> "BatchRules":
        """Derive the rules of a transformers model."""
        text_config = model.config.get_text_config(decoder=True)
        settings = text_config.to_dict()
        # Tokens that attend to later ones are not computed once for all.
        is_causal = settings.get("is_decoder", True) and not settings.get("use_bidirectional_attention")
        pads = not (model._is_stateful or _counts_positions_by_index(model) or not _has_plain_layers(text_config))
        parameters = inspect.signature(model.forward).parameters
        shares_prefix = pads and is_causal and "past_key_values" in parameters
        longest = min(_length_limits(settings), default=None)
        # Layers that drop tokens drop them at the same column in every row, wherever a row begins.
        keeps_all = {type(layer) for layer in DynamicCache(config=text_config).layers} <= {DynamicLayer}
        joins = shares_prefix and longest is None and keeps_all and "position_ids" in parameters
        return cls(shares_prefix, pads, longest, joins)

    @property
    def notices(self) -> list[str]:
        """What these rules forbid and why, in sentences."""
        notices = []
        if not self.pads:
            notices.append("padding would change what this model computes: only prompts of equal length share a batch")
        if not self.shares_prefix:
            notices.append(
                "the common beginning of prompts is computed for each prompt: it can't be cached for several"
            )
        if self.longest_in_batch is not None:
            notices.append(
                f"requests of more than {self.longest_in_batch} tokens are answered one at a time: this model computes "
                "them differently by their length"
            )
        if not self.allows_joining:
            notices.append("a request that arrives while a batch is answered waits for the end of the batch")
        return notices

    def is_too_long(self, request: GenerationRequest) -> bool:
        """Whether a request may get more tokens than a request in a batch of several may have."""
        num_tokens = len(request.prompt_ids) + request.sampling.max_new_tokens
        return self.longest_in_batch is not None and num_tokens > self.longest_in_batch

    def allow(self, first: GenerationRequest, second: GenerationRequest) -> bool:
        """Whether two requests may share a batch. How their tokens are chosen may differ: each has its own sampler."""
        if first is second:
            return True
        if first.adapter != second.adapter:
            return False
        if not self.pads and len(first.prompt_ids) != len(second.prompt_ids):
            return False
        return not self.is_too_long(first) and not self.is_too_long(second)


def _counts_positions_by_index(model: Any) -> bool:
    """Whether a model has embeddings of positions and gets no `position_ids` for them."""
    tokens = model.get_input_embeddings()
    others = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not tokens]
    return bool(others) and "position_ids" not in inspect.signature(model.forward).parameters


def _has_plain_layers(text_config: Any) -> bool:
    """Whether every layer that has a cache keeps exactly one key and one value per token."""
    kinds = {type(layer) for layer in DynamicCache(config=text_config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def _length_limits(settings: dict[str, Any]) -> Iterator[int]:
    """Numbers of tokens above which a computation depends on the longest request of a batch."""
    rope = settings.get("rope_parameters") or {}
    # Some models have one entry per layer type.
    for parameters in [rope] if "rope_type" in rope else [entry for entry in rope.values() if isinstance(entry, dict)]:
        if parameters.get("rope_type") in SCALED_BY_LENGTH:
            limit = parameters.get("original_max_position_embeddings") or settings["max_position_embeddings"]
            # From this length on, the frequencies of an earlier request may be kept.
            yield int(limit) - 1
    if settings.get("attn_temperature_tuning"):
        # Llama 4 scales queries by the number of whole blocks of this many tokens before them, padding included.
        yield int(settings["floor_scale"]) - 1
