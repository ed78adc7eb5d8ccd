"""worker, all ranks: the summed loss of a pack's target tokens; the output head runs on their positions only."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, build_masks

# T = tokens in the pack (padding included), N = target tokens, V = vocabulary


def pack_loss(model: nn.Module, pack: Pack, device: torch.device, layout: MaskLayout) -> Tensor:
    """Cross entropy summed over the target tokens of one pack, in nats.

    Zero, attached to the graph, if the pack has no target tokens. `layout` must fit the model's config.
    """
    return token_losses(model, pack, device, layout).sum()


def token_losses(model: nn.Module, pack: Pack, device: torch.device, layout: MaskLayout) -> Tensor:
    """Cross entropy of each target token of one pack, in nats, in the order of the pack; shape (N,).

    Zeros, attached to the graph, if the pack has no target tokens.
    """
    tensors = PackTensors.from_pack(pack, layout, device)
    positions_N = (tensors.labels_T != IGNORE_INDEX).nonzero()[:, 0]
    if not len(positions_N):
        return _compute_logits(model, tensors, layout, torch.zeros_like(tensors.labels_T[:1])).flatten() * 0.0
    logits_NV = _compute_logits(model, tensors, layout, positions_N)
    cross_entropy = _fused_cross_entropy() if logits_NV.is_cuda else _cross_entropy
    return cross_entropy(logits_NV, tensors.labels_T[positions_N])


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")


@cache
def _fused_cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    """One kernel that never stores the logits in fp32, which would be the largest tensor of a step."""
    # Compiled on first use: torch's compiler takes a second to import.
    return torch.compile(_cross_entropy, dynamic=True)


def _compute_logits(model: nn.Module, tensors: PackTensors, layout: MaskLayout, positions_N: Tensor) -> Tensor:
    output = model(
        input_ids=tensors.input_ids_T[None],
        position_ids=tensors.position_ids_T[None],
        attention_mask=build_masks(tensors, layout),
        # Of no use in training, and some models size their masks by it.
        use_cache=False,
        logits_to_keep=positions_N,
    )
    logits_NV: Tensor = output.logits[0]
    return logits_NV
