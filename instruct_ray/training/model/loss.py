"""worker, all ranks: the summed loss of a pack's target tokens; the output head runs on their positions only."""

from typing import Any

import torch
from torch import Tensor, nn

from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.output_head import compute_target_loss
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, build_masks

# T = tokens in the pack (padding included), N = target tokens


def pack_loss(
    model: nn.Module, pack: Pack, device: torch.device, layout: MaskLayout, *, in_chunks: bool = False
) -> Tensor:
    """Cross entropy summed over the target tokens of one pack, in nats.

    Zero, attached to the graph, if the pack has no target tokens. `layout` must fit the model's config, and `in_chunks`
    its output head (`find_unchunkable_head`).
    """
    tensors = PackTensors.from_pack(pack, layout, device)
    positions_N = _target_positions(tensors)
    if not len(positions_N):
        zero: Tensor = _run(model, tensors, layout, torch.zeros_like(tensors.labels_T[:1])).logits.sum() * 0.0
        return zero
    labels_N = tensors.labels_T[positions_N]
    loss, _ = compute_target_loss(
        model, labels_N, lambda: _run(model, tensors, layout, positions_N), in_chunks=in_chunks
    )
    return loss


def token_losses(
    model: nn.Module, pack: Pack, device: torch.device, layout: MaskLayout, *, in_chunks: bool = False
) -> Tensor:
    """Cross entropy of each target token of one pack, in nats, in the order of the pack; shape (N,).

    The pack must have target tokens.
    """
    tensors = PackTensors.from_pack(pack, layout, device)
    positions_N = _target_positions(tensors)
    losses_N, _ = compute_target_loss(
        model,
        tensors.labels_T[positions_N],
        lambda: _run(model, tensors, layout, positions_N),
        in_chunks=in_chunks,
        reduction="none",
    )
    return losses_N


def _target_positions(tensors: PackTensors) -> Tensor:
    return (tensors.labels_T != IGNORE_INDEX).nonzero()[:, 0]


def _run(model: nn.Module, tensors: PackTensors, layout: MaskLayout, positions_N: Tensor) -> Any:
    """Run the model on a pack, and its output head on these positions."""
    return model(
        input_ids=tensors.input_ids_T[None],
        position_ids=tensors.position_ids_T[None],
        attention_mask=build_masks(tensors, layout),
        # Of no use in training, and some models size their masks by it.
        use_cache=False,
        logits_to_keep=positions_N,
    )
