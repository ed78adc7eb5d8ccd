"""Model and pack -> the summed loss of the pack's trained tokens; the output head runs on trained positions only."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, build_masks

# T = tokens in the pack (padding included), N = trained tokens, V = vocabulary


def pack_loss(model: nn.Module, pack: Pack, device: torch.device, layout: MaskLayout) -> Tensor:
    """Cross entropy summed over the trained tokens of one pack, in nats; a zero attached to the graph where there is
    none. `layout` must be that of the model's configuration."""
    return token_losses(model, pack, device, layout).sum()


def token_losses(model: nn.Module, pack: Pack, device: torch.device, layout: MaskLayout) -> Tensor:
    """Cross entropy of each trained token of one pack, in nats, in the order of the pack; shape (N,). Where nothing is
    trained, zeros that are attached to the graph."""
    tensors = PackTensors.from_pack(pack, layout, device)
    trained_N = (tensors.labels_T != IGNORE_INDEX).nonzero()[:, 0]
    if not len(trained_N):
        return _logits(model, tensors, layout, torch.zeros_like(tensors.labels_T[:1])).flatten() * 0.0
    logits_NV = _logits(model, tensors, layout, trained_N)
    cross_entropy = _fused_cross_entropy() if logits_NV.is_cuda else _cross_entropy
    return cross_entropy(logits_NV, tensors.labels_T[trained_N])


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")


@cache
def _fused_cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    """In one kernel the logits never stand in fp32 in memory, the largest tensor of a step."""
    # Only where it is needed: torch's compiler takes a second to import.
    return torch.compile(_cross_entropy, dynamic=True)


def _logits(model: nn.Module, tensors: PackTensors, layout: MaskLayout, positions_N: Tensor) -> Tensor:
    output = model(
        input_ids=tensors.input_ids_T[None],
        position_ids=tensors.position_ids_T[None],
        attention_mask=build_masks(tensors, layout),
        # A cache would be of no use, and some models size their masks by it.
        use_cache=False,
        logits_to_keep=positions_N,
    )
    logits_NV: Tensor = output.logits[0]
    return logits_NV
