"""Prompts of a batch -> padded tensors, and a cache of their shared prefix in the same layout.

    row     = padding | prompt                       all rows end together
    cached  = the first columns of every row         as many as the shared prefix has tokens
    input   = the other columns                      computed by the model

The prefix is computed once and stands in each row where that row's prompt begins. A shorter prompt begins further to
the right, so the end of its prefix is part of the input: it is computed again where other rows compute their own
tokens. So a batch with a shared prefix has the layout of any other: padding on the left, and no gap inside a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from instruct_ray.inference.prefix_cache import PrefixCache

# Shape suffixes: B = prompts, T = tokens of the longest prompt, P = tokens of the shared prefix, H = heads,
# D = head dimension

# Computing the shared prefix is a forward pass of its own, which pays off from about this many tokens saved.
MIN_TOKENS_SAVED = 64


@dataclass(frozen=True)
class SharedPrefix:
    """The keys and values of the tokens that all prompts of a batch share."""

    states: DynamicCache
    """In the layout of the batch."""
    num_kept: int
    """How many of these tokens were kept from earlier batches; the others were computed for this one."""


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of a batch."""

    prompts: Sequence[list[int]]
    pad_token_id: int

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))

    @property
    def input_ids_BT(self) -> Tensor:
        """The token ids, padded on the left."""
        return torch.tensor([[self.pad_token_id] * (self.max_length - len(ids)) + ids for ids in self.prompts])

    @property
    def attention_mask_BT(self) -> Tensor:
        """1 for tokens of a prompt, 0 for padding."""
        return torch.tensor([[0] * (self.max_length - len(ids)) + [1] * len(ids) for ids in self.prompts])

    @cached_property
    def shared(self) -> list[int]:
        """The leading tokens that all prompts share.

        At least one token of each prompt is left out, because the model needs an input to predict the next token from.
        """
        limit = min(map(len, self.prompts)) - 1
        # The smallest and the largest prompt differ the earliest.
        first, last = min(self.prompts), max(self.prompts)
        length = next((i for i in range(limit) if first[i] != last[i]), limit)
        return first[:length]

    def compute_prefix_cache(self, model: Any, prefixes: PrefixCache) -> SharedPrefix | None:
        """Lay out the keys and values of the shared tokens for the batch; None if that would save too little."""
        num_kept = prefixes.num_kept(self.shared)
        num_cached = self._choose_num_cached(prefixes, num_kept)
        prefixes.remember(self.prompts[0])
        if not num_cached:
            return None
        prefix = prefixes.compute(model, self.shared[:num_cached])
        batch = DynamicCache(config=model.config)
        for number, layer in enumerate(prefix.layers):
            # Layers that use the keys and values of another layer have none.
            if layer.is_initialized:
                # Drops what lies outside a sliding window.
                batch.update(self._lay_out(layer.keys), self._lay_out(layer.values), number)
        return SharedPrefix(batch, min(num_kept, num_cached))

    def num_cached(self, prefixes: PrefixCache) -> int:
        """How many of the shared tokens come from a cache: those that are kept already, or more, to keep them."""
        return self._choose_num_cached(prefixes, prefixes.num_kept(self.shared))

    def num_reused(self, prefix: SharedPrefix | None) -> list[int]:
        """Of each prompt, how many tokens earlier batches have computed."""
        if prefix is None:
            return [0] * len(self.prompts)
        num_cached = prefix.states.get_seq_length()
        # The end of the prefix of a shorter prompt is part of the input.
        sizes = [num_cached - (self.max_length - len(ids)) for ids in self.prompts]
        return [max(0, min(size, prefix.num_kept)) for size in sizes]

    def _choose_num_cached(self, prefixes: PrefixCache, num_kept: int) -> int:
        num_shared = len(self.shared)
        if (num_shared - num_kept) * (len(self.prompts) - 1) >= MIN_TOKENS_SAVED:
            return num_shared
        # Not for this batch, but for the next ones.
        num_seen = prefixes.num_seen(self.shared)
        return num_seen if num_seen - num_kept >= MIN_TOKENS_SAVED else num_kept

    def _lay_out(self, states_1HPD: Tensor) -> Tensor:
        """Move the prefix to where each prompt begins; returns (B, H, P, D), with arbitrary values in the padding."""
        starts_B1 = torch.tensor([[self.max_length - len(ids)] for ids in self.prompts], device=states_1HPD.device)
        columns_P = torch.arange(states_1HPD.shape[2], device=states_1HPD.device)
        sources_BP = (columns_P - starts_B1).clamp(min=0)
        return states_1HPD[0][:, sources_BP].transpose(0, 1)
