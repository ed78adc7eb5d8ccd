"""driver: measures the peak memory that computing one pack takes besides weights and gradients, without computing it.

The model's own forward and backward pass run on the meta device, where tensors have shapes but no data, and the bytes
of all live storages are added up operator by operator. This holds for any architecture, with adapters, with or without
activation checkpointing, and includes the temporary memory of the backward pass. As a reference: a layer of a plain
transformer keeps about 34 bytes per token and hidden unit in 16 bit, or 2 with checkpointing (Korthikanti et al. 2022,
"Reducing Activation Recomputation in Large Transformer Models", sections 4.1 and 5, without the attention term, which
fused attention does not keep).
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers.integrations import moe

from instruct_ray.base_model.causal_lm import takes_registered_attention
from instruct_ray.training.model.chunked_attention import CHUNK_TOKENS, TREE_CHUNKS, KeyChunks, preset_chunks
from instruct_ray.training.model.output_head import chunk_bytes, compute_target_loss
from instruct_ray.training.model.tree_mask import FLEX, MaskLayout

# Names in transformers of the stand-ins for fused attention; the second one's mask takes almost no memory.
COUNTED_SDPA, COUNTED_FLEX = "counted_sdpa", "counted_flex"

# B = rows, T = tokens of a row, N = positions of the output head, H = query heads, G = key heads,
# D = head dimension


@dataclass(frozen=True)
class PackShape:
    """What one forward pass computes."""

    num_rows: int
    """1 for a pack; in padded mode the branches of a pack."""
    num_tokens: int
    """Tokens of each row, padding included."""
    num_output_positions: int
    """Positions that the output head runs on, in all rows."""
    num_keys: int
    """The largest number of keys that a chunk of queries sees, for attention in chunks (chunked_attention.py)."""
    is_padded: bool = False
    """Whether the rows are computed as in padded mode (padded.py), where the model makes its own masks."""


class LiveMemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the storages that operators allocate inside this context and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """The maximum so far, in bytes."""
        self._current = 0
        self._sizes: dict[int, int] = {}

    def ignore(self, tensors: list[Tensor]) -> None:
        """Do not count the storages of these tensors."""
        self._sizes |= {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._current += storage.nbytes()
        self.peak = max(self.peak, self._current)
        # The Python wrapper lives as long as the storage.
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._current -= self._sizes.pop(key)


def countable_attention(hf_config: Any, attn_implementation: str) -> str:
    """The attention implementation to build a model with that is given to `peak_activation_bytes`.

    Implementations made of plain operators are counted as they are. A fused one (sdpa, flex_attention) does not show
    its memory as operators, so a stand-in replaces it; eager attention, which takes more, where a model takes none.
    """
    if attn_implementation in ("eager", TREE_CHUNKS):
        return attn_implementation
    if not takes_registered_attention(hf_config):
        return "eager"
    name = COUNTED_FLEX if attn_implementation == FLEX else COUNTED_SDPA
    AttentionInterface.register(name, fused_attention)
    AttentionMaskInterface.register(name, _full_mask)
    return name


def peak_activation_bytes(model: Any, shape: PackShape, *, in_chunks: bool) -> int:
    """Peak bytes during the forward and backward pass of one pack on a CPU, besides the weights and their gradients.

    `model` is on the meta device, with adapters and checkpointing as in training, and with `countable_attention`;
    `in_chunks` if its output head allows it (`find_unchunkable_head`).
    """
    # The auxiliary router loss takes almost no memory, and needs a mask of another form.
    model.config.output_router_logits = False
    parameters = list(model.parameters())
    # Each gradient counts while it is computed, then it is dropped: how much of it is kept depends on the ZeRO stage.
    hooks = [
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for parameter in parameters
        if parameter.requires_grad
    ]
    tracker = LiveMemoryTracker()
    tracker.ignore([*parameters, *model.buffers()])
    positions_N = _output_positions(shape)
    labels_N = torch.zeros(shape.num_rows * len(positions_N), dtype=torch.long, device="meta")
    with _without_values(), tracker, torch.device("meta"):
        inputs = _build_inputs(model, shape)
        loss, _ = compute_target_loss(
            model,
            labels_N,
            lambda: model(**inputs, use_cache=False, logits_to_keep=positions_N),
            in_chunks=in_chunks,
        )
        torch.autograd.backward(loss)
    for hook in hooks:
        hook.remove()
    return tracker.peak + (chunk_bytes(model, len(labels_N)) if in_chunks else 0)


def rough_activation_bytes(model: Any, shape: PackShape) -> int:
    """An estimate for models that can't be run on the meta device.

    Per layer 34 bytes for each token and hidden unit in 16 bits, as a plain transformer without fused kernels keeps
    (see the top of this file), and the output head's logits with their gradient in fp32.
    """
    text_config, num_bytes = model.config.get_text_config(), model.dtype.itemsize
    per_layer = 17 * num_bytes * shape.num_rows * shape.num_tokens * text_config.hidden_size
    logits = 2 * 4 * shape.num_output_positions * text_config.vocab_size
    return int(text_config.num_hidden_layers * per_layer + logits)


@contextmanager
def _without_values() -> Iterator[None]:
    """Keep transformers from what the meta device can't do, inside the block.

    It computes experts with torch's grouped matrix product, which takes only bfloat16 there; its other operator
    allocates the same. It reads position ids to find out whether a row is packed, and token ids to warn of padding. And
    peft turns autocast off for the adapters of experts, which it is anyway.
    """
    with (
        patch.object(moe, "_can_use_grouped_mm", lambda *args: False),
        patch.object(torch, "autocast", lambda *args, **kwargs: nullcontext()),
        patch.object(PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda *args: None),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None),
    ):
        yield


def _build_inputs(model: Any, shape: PackShape) -> dict[str, Tensor]:
    """The inputs of a forward pass.

    In padded mode without the mask of the padding, which is small: some models look at its values, and on the meta
    device there are none. They still make the same masks for attention.
    """
    input_ids_BT = torch.zeros(shape.num_rows, shape.num_tokens, dtype=torch.long)
    if shape.is_padded:
        return {"input_ids": input_ids_BT}
    layout = MaskLayout.from_hf_config(model.config, model.config._attn_implementation, model.dtype)
    masks = _build_masks(layout, shape)
    return {"input_ids": input_ids_BT, "position_ids": torch.zeros_like(input_ids_BT), "attention_mask": masks}


def _output_positions(shape: PackShape) -> Tensor:
    """The same number of positions in every row: on the meta device a boolean mask can't select any."""
    return torch.zeros(-(-shape.num_output_positions // shape.num_rows), dtype=torch.long, device="meta")


def _build_masks(layout: MaskLayout, shape: PackShape) -> Any:
    if isinstance(layout.windows, dict):
        return {layer_type: _build_mask(layout, shape) for layer_type in layout.windows}
    return _build_mask(layout, shape)


def _build_mask(layout: MaskLayout, shape: PackShape) -> Tensor:
    length = 1 if layout.attn_implementation == COUNTED_FLEX else shape.num_tokens
    dtype = layout.dtype if layout.attn_implementation == "eager" else torch.bool
    mask_B1TT = torch.zeros(shape.num_rows, 1, length, length, dtype=dtype)
    if layout.attn_implementation == TREE_CHUNKS:
        num_chunks = -(-length // CHUNK_TOKENS)
        hidden = torch.zeros(num_chunks, CHUNK_TOKENS, shape.num_keys, dtype=torch.bool)
        preset_chunks(mask_B1TT, KeyChunks(torch.zeros(num_chunks, shape.num_keys, dtype=torch.long), hidden))
    return mask_B1TT


def _full_mask(
    batch_size: int, q_length: int, kv_length: int, device: torch.device | str = "meta", **kwargs: Any
) -> Tensor:
    """The mask that transformers makes for sdpa; called by it."""
    return torch.zeros(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _FusedAttention(torch.autograd.Function):
    """Allocates what a fused attention keeps: its inputs, its output, and one number per query and head."""

    @staticmethod
    def forward(ctx: Any, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor) -> Tensor:
        out_BHTD = torch.empty_like(query_BHTD)
        logsumexp_BHT = torch.empty(query_BHTD.shape[:3], dtype=torch.float32, device=query_BHTD.device)
        ctx.save_for_backward(query_BHTD, key_BGTD, value_BGTD, out_BHTD, logsumexp_BHT)
        return out_BHTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BHTD, key_BGTD, value_BGTD, *_ = ctx.saved_tensors
        return torch.empty_like(query_BHTD), torch.empty_like(key_BGTD), torch.empty_like(value_BGTD)


def fused_attention(
    module: Any, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """A stand-in for fused attention that computes shapes only; called by transformers, returns (B, T, H, D)."""
    out_BHTD: Tensor = _FusedAttention.apply(query_BHTD, key_BGTD, value_BGTD)  # type: ignore[no-untyped-call]
    return out_BHTD.transpose(1, 2), None
