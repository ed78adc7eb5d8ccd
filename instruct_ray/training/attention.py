"""subtree_end -> the attention mask of a pack: query i sees key j iff j <= i < subtree_end[j]."""

import torch
from torch import Tensor

# T = tokens in the pack


def tree_mask(subtree_end_T: Tensor) -> Tensor:
    """The dense mask for scaled dot-product attention: bool, shape (1, 1, T, T), true where a query may see a key."""
    index_T = torch.arange(subtree_end_T.shape[0], device=subtree_end_T.device)
    query_T1, key_1T = index_T[:, None], index_T[None, :]
    return ((key_1T <= query_T1) & (query_T1 < subtree_end_T[None, :]))[None, None]
