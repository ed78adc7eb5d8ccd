"""Keys and values of the beginnings of prompts, kept from one batch to the next."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Shape suffixes: H = heads, P = tokens of the prefix, D = head dimension

# A shorter beginning is computed faster than it is looked up.
MIN_TOKENS = 32
NUM_LAST_PROMPTS = 64


@dataclass(frozen=True)
class _Entry:
    ids: Sequence[int]
    cache: DynamicCache


class PrefixCache:
    """Keeps the prefixes that were used last, up to a number of tokens.

    Which part of a prompt comes again shows when it does: the tokens of the last prompts are remembered, and what a
    later one has in common with them is worth keeping.
    """

    def __init__(self, max_tokens: int) -> None:
        """Keep nothing yet; never anything if `max_tokens` is 0."""
        self._max_tokens = max_tokens
        # The one used last comes last.
        self._entries: list[_Entry] = []
        self._last_prompts: deque[Sequence[int]] = deque(maxlen=NUM_LAST_PROMPTS)

    @property
    def num_tokens(self) -> int:
        """Tokens of all prefixes that are kept."""
        return sum(len(entry.ids) for entry in self._entries)

    def num_kept(self, ids: Sequence[int]) -> int:
        """How many of the first tokens are kept: 0, or MIN_TOKENS or more."""
        longest = max((_count_common(entry.ids, ids) for entry in self._entries), default=0)
        return longest if longest >= MIN_TOKENS else 0

    def num_seen(self, ids: Sequence[int]) -> int:
        """How many of the first tokens one of the last prompts had too, if they can be kept; otherwise 0."""
        longest = max((_count_common(prompt, ids) for prompt in self._last_prompts), default=0)
        return longest if MIN_TOKENS <= longest <= self._max_tokens else 0

    def remember(self, prompt: Sequence[int]) -> None:
        """Remember the tokens of a prompt."""
        if self._max_tokens:
            self._last_prompts.append(prompt)

    def clear(self) -> None:
        """Free the memory of all prefixes."""
        self._entries.clear()

    @torch.inference_mode()
    def compute(self, model: Any, ids: Sequence[int]) -> DynamicCache:
        """Return the keys and values of some tokens, which are kept from now on; shape (1, H, P, D) in each layer.

        What is kept of them already is not computed again.
        """
        entry = max(self._entries, key=lambda entry: _count_common(entry.ids, ids), default=None)
        num_kept = self.num_kept(ids)
        cache = _empty_cache(model)
        if entry is not None and num_kept:
            self._entries.remove(entry)
            self._entries.append(entry)
            for number, layer in enumerate(entry.cache.layers):
                # Layers that use the keys and values of another layer have none.
                if layer.is_initialized:
                    cache.update(layer.keys[:, :, :num_kept], layer.values[:, :, :num_kept], number)
        if num_kept < len(ids):
            input_ids = torch.tensor([list(ids[num_kept:])], device=model.device)
            model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._keep(_Entry(tuple(ids), cache))
        return cache

    def _keep(self, new: _Entry) -> None:
        if not MIN_TOKENS <= len(new.ids) <= self._max_tokens:
            return
        # A prefix of the new one is part of it.
        self._entries = [entry for entry in self._entries if _count_common(entry.ids, new.ids) < len(entry.ids)]
        while self.num_tokens + len(new.ids) > self._max_tokens:
            self._entries.pop(0)
        self._entries.append(new)


def _empty_cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    # Layers with a sliding window would keep its last tokens only, but the rows of a batch need different ones.
    cache.layers = [DynamicLayer() for _ in cache.layers]
    return cache


def _count_common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of leading tokens that two sequences share."""
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)
