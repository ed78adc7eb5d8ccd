"""subtree_end and position_ids -> the attention mask of a pack, in the form that the attention implementation takes.

    query i sees key j   <=>   j <= i < subtree_end[j]   and, in a layer with a sliding window,
                               position_ids[i] - position_ids[j] < window

A mask that is passed in stands for the model's own: transformers hands a four-dimensional mask on as it is, and takes a
dict of masks by kind of layer where a model has several kinds (masking_utils._preprocess_mask_arguments). So the window
must be in it.
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
# FlexAttention's sparse block: lengths are rounded up to it, so that few shapes are compiled.
BLOCK_TOKENS = 128

Mask = Tensor | BlockMask
MaskMod = Callable[[Tensor | None, Tensor | None, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MaskLayout:
    """Which masks a model takes, and in what form."""

    implementation: str
    """transformers' attention implementation: sdpa (boolean mask), eager (additive mask) or flex_attention."""
    dtype: torch.dtype
    """Of the model: an additive mask is in it."""
    windows: dict[str, int | None] | int | None
    """Sliding window in tokens, None for full attention; by kind of layer where the model takes one mask per kind."""

    @classmethod
    def from_hf_config(cls, config: Any, implementation: str, dtype: torch.dtype) -> "MaskLayout":
        """The layout for a transformers configuration.

        Raises:
            InputError: layers have a sliding window, and the configuration does not say how long.
        """
        text = config.get_text_config()
        # transformers 5: exactly the models whose configuration declares layer_types take a dict. Old Mistral folders
        # carry the key without declaring it, and take one mask.
        if not any(field.name == "layer_types" for field in fields(text)):
            return cls(implementation, dtype, text.to_dict().get("sliding_window"))
        kinds = set(text.layer_types or ())
        if "sliding_attention" not in kinds:
            return cls(implementation, dtype, None)
        if text.sliding_window is None:
            raise InputError(f"model.base: {text.model_type} has sliding_attention layers but no sliding_window")
        return cls(implementation, dtype, {"full_attention": None, "sliding_attention": text.sliding_window})

    @property
    def window(self) -> int | None:
        """The sliding window, in tokens; None if all layers see everything."""
        return self.windows["sliding_attention"] if isinstance(self.windows, dict) else self.windows


@dataclass(frozen=True)
class PackTensors:
    """A pack on the device, shapes (T,)."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    labels_T: Tensor
    subtree_end_T: Tensor

    @classmethod
    def from_pack(cls, pack: Pack, layout: MaskLayout, device: torch.device) -> "PackTensors":
        """Move a pack to the device; padded to whole blocks for FlexAttention, with tokens that see only themselves."""
        num_tokens = len(pack["input_ids"])
        num_padding = -num_tokens % BLOCK_TOKENS if layout.implementation == FLEX else 0

        def padded(values: Int32s, padding: int | Int32s) -> Tensor:
            whole = np.append(values, np.broadcast_to(padding, num_padding))
            return torch.tensor(whole, dtype=torch.long, device=device)

        return cls(
            padded(pack["input_ids"], 0),
            padded(pack["position_ids"], 0),
            padded(pack["labels"], IGNORE_INDEX),
            padded(pack["subtree_end"], np.arange(num_padding, dtype=np.int32) + num_tokens + 1),
        )


def tree_mask_mod(subtree_end_T: Tensor, position_ids_T: Tensor, window: int | None) -> MaskMod:
    """The rule at the top of this file, as FlexAttention's `mask_mod(batch, head, query, key)`; indices broadcast."""

    def sees(batch: Tensor | None, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < subtree_end_T[key])
        return seen if window is None else seen & (position_ids_T[query] - position_ids_T[key] < window)

    return sees


def tree_mask(subtree_end_T: Tensor, position_ids_T: Tensor, window: int | None = None) -> Tensor:
    """The rule as a dense mask: bool, shape (1, 1, T, T), true where a query may see a key."""
    index_T = torch.arange(subtree_end_T.shape[0], device=subtree_end_T.device)
    return tree_mask_mod(subtree_end_T, position_ids_T, window)(None, None, index_T[:, None], index_T[None, :])[
        None, None
    ]


def build_masks(tensors: PackTensors, layout: MaskLayout) -> Mask | dict[str, Mask]:
    """The masks of one pack, each built once for all layers that share it; give it to the model as attention_mask."""
    if isinstance(layout.windows, dict):
        return {kind: _mask(tensors, layout, window) for kind, window in layout.windows.items()}
    return _mask(tensors, layout, layout.windows)


def _mask(tensors: PackTensors, layout: MaskLayout, window: int | None) -> Mask:
    subtree_end_T, position_ids_T = tensors.subtree_end_T, tensors.position_ids_T
    if layout.implementation == FLEX:
        length, device = len(subtree_end_T), subtree_end_T.device
        rule = tree_mask_mod(subtree_end_T, position_ids_T, window)
        # Compiled, it never holds the dense mask; on CPU compiling costs more than that.
        compiled = device.type != "cpu"
        return create_block_mask(rule, B=1, H=None, Q_LEN=length, KV_LEN=length, device=device, _compile=compiled)
    mask_11TT = tree_mask(subtree_end_T, position_ids_T, window)
    if layout.implementation == "eager":
        zero = torch.zeros((), dtype=layout.dtype, device=mask_11TT.device)
        return torch.where(mask_11TT, zero, torch.finfo(layout.dtype).min)
    return mask_11TT
