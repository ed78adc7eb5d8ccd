"""pure: the attention mask of a pack, in the form that an attention implementation takes.

    query i sees key j   <=>   j <= i < subtree_end[j]   and, in a layer with a sliding window,
                               position_ids[i] - position_ids[j] < window

The mask replaces the model's own: transformers passes a four-dimensional mask through unchanged, and takes a dict of
masks by layer type where a model has several types (masking_utils._preprocess_mask_arguments). So the mask must include
the sliding window.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from instruct_ray.data.example import IGNORE_INDEX, Int32s
from instruct_ray.data.packs.tree import Pack
from instruct_ray.errors import InputError

# T = tokens in the pack (padding included)

FLEX = "flex_attention"
# FlexAttention's sparse block size. Lengths are rounded up to it, so that few shapes are compiled.
BLOCK_TOKENS = 128

Mask = Tensor | BlockMask
MaskMod = Callable[[Tensor | None, Tensor | None, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MaskLayout:
    """Which masks a model takes, and in what form."""

    attn_implementation: str
    """In transformers: sdpa and tree_chunks take a boolean mask, eager an additive one, flex_attention a BlockMask."""
    dtype: torch.dtype
    """Of the model, and of an additive mask."""
    windows: dict[str, int | None] | int | None
    """Sliding window in tokens, None for full attention; a dict by layer type if the model takes one mask per type."""

    @classmethod
    def from_hf_config(cls, hf_config: Any, attn_implementation: str, dtype: torch.dtype) -> "MaskLayout":
        """Derive the layout from a transformers config.

        Raises:
            InputError: layers have a sliding window, and the config gives no size for it.
        """
        text_config = hf_config.get_text_config()
        # transformers 5: exactly the models whose config class declares layer_types take a dict. Old Mistral folders
        # have the key without declaring it, and take one mask.
        if not any(field.name == "layer_types" for field in fields(text_config)):
            return cls(attn_implementation, dtype, text_config.to_dict().get("sliding_window"))
        layer_types = set(text_config.layer_types or ())
        if "sliding_attention" not in layer_types:
            return cls(attn_implementation, dtype, None)
        if text_config.sliding_window is None:
            raise InputError(f"model.base: {text_config.model_type} has sliding_attention layers but no sliding_window")
        windows = {"full_attention": None, "sliding_attention": text_config.sliding_window}
        return cls(attn_implementation, dtype, windows)

    @property
    def window(self) -> int | None:
        """The sliding window in tokens; None if all layers have full attention."""
        return self.windows["sliding_attention"] if isinstance(self.windows, dict) else self.windows


@dataclass(frozen=True)
class PackTensors:
    """A pack on the device; all shapes are (T,)."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    labels_T: Tensor
    subtree_end_T: Tensor

    @classmethod
    def from_pack(cls, pack: Pack, layout: MaskLayout, device: torch.device) -> "PackTensors":
        """Move a pack to the device; for FlexAttention pad it to whole blocks, with tokens that see only themselves."""
        num_tokens = len(pack["input_ids"])
        num_padding = -num_tokens % BLOCK_TOKENS if layout.attn_implementation == FLEX else 0

        def pad(values: Int32s, padding: int | Int32s) -> Tensor:
            padded_values = np.append(values, np.broadcast_to(padding, num_padding))
            return torch.tensor(padded_values, dtype=torch.long, device=device)

        return cls(
            pad(pack["input_ids"], 0),
            pad(pack["position_ids"], 0),
            pad(pack["labels"], IGNORE_INDEX),
            pad(pack["subtree_end"], np.arange(num_padding, dtype=np.int32) + num_tokens + 1),
        )


def tree_mask_mod(subtree_end_T: Tensor, position_ids_T: Tensor, window: int | None) -> MaskMod:
    """The rule of this module as FlexAttention's `mask_mod(batch, head, query, key)`; the indices broadcast."""

    def is_visible(batch: Tensor | None, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        in_subtree = (key <= query) & (query < subtree_end_T[key])
        return in_subtree if window is None else in_subtree & (position_ids_T[query] - position_ids_T[key] < window)

    return is_visible


def tree_mask(subtree_end_T: Tensor, position_ids_T: Tensor, window: int | None = None) -> Tensor:
    """The rule of this module as a dense mask: bool, shape (1, 1, T, T), true where a query sees a key."""
    index_T = torch.arange(subtree_end_T.shape[0], device=subtree_end_T.device)
    return tree_mask_mod(subtree_end_T, position_ids_T, window)(None, None, index_T[:, None], index_T[None, :])[
        None, None
    ]


def build_masks(tensors: PackTensors, layout: MaskLayout) -> Mask | dict[str, Mask]:
    """The masks of one pack, to pass as `attention_mask`; layers of the same type share one mask."""
    if isinstance(layout.windows, dict):
        return {layer_type: _build_mask(tensors, layout, window) for layer_type, window in layout.windows.items()}
    return _build_mask(tensors, layout, layout.windows)


def _build_mask(tensors: PackTensors, layout: MaskLayout, window: int | None) -> Mask:
    subtree_end_T, position_ids_T = tensors.subtree_end_T, tensors.position_ids_T
    if layout.attn_implementation == FLEX:
        length, device = len(subtree_end_T), subtree_end_T.device
        mask_mod = tree_mask_mod(subtree_end_T, position_ids_T, window)
        # Compiled, it never stores the dense mask; on a CPU compiling costs more than that.
        compiled = device.type != "cpu"
        return create_block_mask(mask_mod, B=1, H=None, Q_LEN=length, KV_LEN=length, device=device, _compile=compiled)
    mask_11TT = tree_mask(subtree_end_T, position_ids_T, window)
    if layout.attn_implementation == "eager":
        zero = torch.zeros((), dtype=layout.dtype, device=mask_11TT.device)
        return torch.where(mask_11TT, zero, torch.finfo(layout.dtype).min)
    return mask_11TT
