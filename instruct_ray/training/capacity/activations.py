"""Architecture and pack -> the memory that computing the pack takes beside weights and gradients, not computing it.

The model's own forward and backward pass run on the meta device, where tensors have shapes and no content, and the
bytes of the storages that are alive are added up operator by operator. So it holds for any architecture, for adapters,
with and without activation checkpointing, and counts what the backward pass needs in between. For orientation: a layer
of a plain transformer keeps about 34 bytes per token and hidden unit in 16 bit, or 2 with checkpointing (Korthikanti et
al. 2022, "Reducing Activation Recomputation in Large Transformer Models", sections 4.1 and 5, without its attention
term, which fused attention does not keep).
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from instruct_ray.training.model.chunked_attention import CHUNK_TOKENS, TREE_CHUNKS, KeyChunks, preset_chunks
from instruct_ray.training.model.tree_mask import FLEX, MaskLayout

# Names in transformers of what stands for fused attention, with a mask and with one that takes no memory to speak of.
COUNTED_SDPA, COUNTED_FLEX = "counted_sdpa", "counted_flex"

# B = rows, T = tokens of a row, N = trained tokens, C = chunks, K = keys of one, H = query heads, G = key heads,
# D = size of a head


@dataclass(frozen=True)
class PackShape:
    """What one forward pass computes."""

    num_rows: int
    """1 for a pack; examples of a pack that is run padded."""
    num_tokens: int
    """Of each row, padding included."""
    num_trained: int
    """Positions that the output head runs on, over all rows."""
    num_keys: int
    """Most keys that a chunk of queries sees, where attention runs in chunks (chunks.py)."""


class LiveMemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the storages that operators made within it and that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """The most at once, in bytes."""
        self._now = 0
        self._known: dict[int, int] = {}

    def ignore(self, tensors: list[Tensor]) -> None:
        """Leave these out."""
        self._known |= {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        # The wrapper lives as long as the storage does.
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._known.pop(key)


def countable_attention(implementation: str) -> str:
    """The attention to build a model with whose pack is counted: those that run in steps of plain operators stand for
    themselves, a fused one (sdpa, flex_attention) has no such steps to count."""
    if implementation in ("eager", TREE_CHUNKS):
        return implementation
    name = COUNTED_FLEX if implementation == FLEX else COUNTED_SDPA
    AttentionInterface.register(name, fused_attention)
    return name


def peak_activation_bytes(model: Any, shape: PackShape) -> int:
    """The most bytes alive during forward and backward pass of one pack, beside weights and their gradients.

    `model` is on the meta device, adapted and checkpointed as in training, with the attention that `counted_as` named.
    """
    # A router's auxiliary loss takes next to no memory, and a mask of another form.
    model.config.output_router_logits = False
    parameters = list(model.parameters())
    # A gradient is counted while it is made; how much of it is kept depends on ZeRO.
    hooks = [each.register_post_accumulate_grad_hook(_drop) for each in parameters if each.requires_grad]
    layout = MaskLayout.from_hf_config(model.config, model.config._attn_implementation, model.dtype)
    live = LiveMemoryTracker()
    live.ignore([*parameters, *model.buffers()])
    with live, torch.device("meta"):
        output = model(
            input_ids=torch.zeros(shape.num_rows, shape.num_tokens, dtype=torch.long),
            position_ids=torch.zeros(shape.num_rows, shape.num_tokens, dtype=torch.long),
            attention_mask=_masks(layout, shape),
            use_cache=False,
            logits_to_keep=_trained(shape),
        )
        logits_NV = output.logits.flatten(0, -2)
        losses_N = F.cross_entropy(logits_NV.float(), torch.zeros(len(logits_NV), dtype=torch.long), reduction="none")
        torch.autograd.backward(losses_N.sum())
    for hook in hooks:
        hook.remove()
    return live.peak


def _trained(shape: PackShape) -> Tensor:
    """As many positions in every row: which ones a mask would choose, depends on its content."""
    return torch.zeros(-(-shape.num_trained // shape.num_rows), dtype=torch.long)


def _masks(layout: MaskLayout, shape: PackShape) -> Any:
    if isinstance(layout.windows, dict):
        return {kind: _mask(layout, shape) for kind in layout.windows}
    return _mask(layout, shape)


def _mask(layout: MaskLayout, shape: PackShape) -> Tensor:
    length = 1 if layout.implementation == COUNTED_FLEX else shape.num_tokens
    dtype = layout.dtype if layout.implementation == "eager" else torch.bool
    mask_B1TT = torch.zeros(shape.num_rows, 1, length, length, dtype=dtype)
    if layout.implementation == TREE_CHUNKS:
        num_chunks = -(-length // CHUNK_TOKENS)
        hidden = torch.zeros(num_chunks, CHUNK_TOKENS, shape.num_keys, dtype=torch.bool)
        preset_chunks(mask_B1TT, KeyChunks(torch.zeros(num_chunks, shape.num_keys, dtype=torch.long), hidden))
    return mask_B1TT


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class _Fused(torch.autograd.Function):
    """What a fused attention keeps: its inputs, its output and one number per query and head."""

    @staticmethod
    def forward(ctx: Any, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor) -> Tensor:
        out_BHTD = torch.empty_like(query_BHTD)
        sums_BHT = torch.empty(query_BHTD.shape[:3], dtype=torch.float32, device=query_BHTD.device)
        ctx.save_for_backward(query_BHTD, key_BGTD, value_BGTD, out_BHTD, sums_BHT)
        return out_BHTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BHTD, key_BGTD, value_BGTD, *_ = ctx.saved_tensors
        return torch.empty_like(query_BHTD), torch.empty_like(key_BGTD), torch.empty_like(value_BGTD)


def fused_attention(
    module: Any, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Shapes of attention as transformers calls it; returns (B, T, H, D)."""
    out_BHTD: Tensor = _Fused.apply(query_BHTD, key_BGTD, value_BGTD)  # type: ignore[no-untyped-call]
    return out_BHTD.transpose(1, 2), None
