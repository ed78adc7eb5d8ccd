"""worker, all ranks: attention over packs on a CPU, in chunks of queries that each read only the keys they may see.

The mask of a pack is sparse: a token sees only the tokens on the path from the root to itself. In depth-first order
these are the shared prompts and the tokens just before it, so a chunk of queries needs few keys, and the work grows
linearly with the length of the pack. The result is exact: the keys that are left out have weight zero.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

# The name of this implementation in transformers.
TREE_CHUNKS = "tree_chunks"
CHUNK_TOKENS = 64

# T = tokens in the pack, C = tokens in a chunk, N = chunks, K = keys of a chunk, padded to the largest number of keys,
# H = query heads, G = key heads, D = head dimension


@dataclass(frozen=True)
class KeyChunks:
    """Which keys the queries of each chunk see."""

    keys_NK: Tensor
    """Indices of the keys; a chunk that needs fewer is padded with keys that it does not see."""
    hidden_NCK: Tensor
    """True where a query of the chunk does not see a key."""

    @classmethod
    def from_mask(cls, mask_TT: Tensor) -> "KeyChunks":
        """Find the keys of each chunk from a boolean mask."""
        length = mask_TT.shape[0]
        num_chunks = -(-length // CHUNK_TOKENS)
        # Queries past the end see the same keys as the last token; their output is dropped.
        queries = torch.arange(num_chunks * CHUNK_TOKENS, device=mask_TT.device).clamp(max=length - 1)
        mask_NCT = mask_TT[queries].view(num_chunks, CHUNK_TOKENS, length)
        needed_NT = mask_NCT.any(1)
        num_keys = int(needed_NT.sum(1).max())
        # A stable sort moves the needed keys of each chunk to the front and keeps their order.
        keys_NK = needed_NT.logical_not().sort(dim=1, stable=True).indices[:, :num_keys]
        seen_NCK = mask_NCT.gather(2, keys_NK[:, None].expand(-1, CHUNK_TOKENS, -1))
        return cls(keys_NK, seen_NCK.logical_not())


# All layers get the same mask tensor: its chunks are computed once, and freed with it.
_chunks_by_mask: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def preset_chunks(mask_11TT: Tensor, chunks: KeyChunks) -> None:
    """Use these chunks for a mask instead of computing them, as for a mask on the meta device."""
    _chunks_by_mask[mask_11TT] = chunks


def register_chunked_attention() -> None:
    """Register the implementation with transformers under its name."""
    AttentionInterface.register(TREE_CHUNKS, chunked_attention)


def chunked_attention(
    module: Any,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, for one pack and its boolean mask (1, 1, T, T); returns (1, T, H, D)."""
    if attention_mask not in _chunks_by_mask:
        _chunks_by_mask[attention_mask] = KeyChunks.from_mask(attention_mask[0, 0])
    chunks: KeyChunks = _chunks_by_mask[attention_mask]
    (num_heads, length, size), num_groups = query_1HTD.shape[1:], key_1GTD.shape[1]
    num_chunks, num_keys = chunks.keys_NK.shape
    per_group = num_heads // num_groups
    scale = size**-0.5 if scaling is None else scaling

    query_HTD = F.pad(query_1HTD[0] * scale, (0, 0, 0, num_chunks * CHUNK_TOKENS - length))
    # The query heads of one key head are adjacent: (N, G, H/G * C, D).
    queries = query_HTD.view(num_groups, per_group, num_chunks, CHUNK_TOKENS, size).permute(2, 0, 1, 3, 4)
    queries = queries.reshape(num_chunks, num_groups, per_group * CHUNK_TOKENS, size)
    keys, values = (
        states[0].index_select(1, chunks.keys_NK.flatten()).view(num_groups, num_chunks, num_keys, -1).transpose(0, 1)
        for states in (key_1GTD, value_1GTD)
    )
    scores = (queries @ keys.transpose(-1, -2)).view(num_chunks, num_groups, per_group, CHUNK_TOKENS, num_keys)
    scores = scores.masked_fill(chunks.hidden_NCK[:, None, None], float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(query_1HTD.dtype)
    weights = F.dropout(weights, dropout, module.training)
    output = weights.view(num_chunks, num_groups, per_group * CHUNK_TOKENS, num_keys) @ values
    output = output.view(num_chunks, num_groups, per_group, CHUNK_TOKENS, -1).permute(0, 3, 1, 2, 4)
    # Contiguous like the output of transformers' own implementations: some models (AFMoE, JetMoE) take a view of it.
    return output.reshape(1, num_chunks * CHUNK_TOKENS, num_heads, -1)[:, :length].contiguous(), None
