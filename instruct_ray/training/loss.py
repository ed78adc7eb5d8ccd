"""Model and pack -> the summed loss of the pack's trained tokens; the output head runs on trained positions only."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instruct_ray.data.packing import IGNORE_INDEX, Pack
from instruct_ray.training.attention import tree_mask

# T = tokens in the pack, N = trained tokens, V = vocabulary


def pack_loss(model: nn.Module, pack: Pack, device: torch.device) -> Tensor:
    """Cross entropy summed over the trained tokens of one pack; a zero attached to the graph where there is none."""
    input_ids_T = torch.tensor(pack["input_ids"], device=device)
    labels_T = torch.tensor(pack["labels"], device=device)
    trained_N = (labels_T != IGNORE_INDEX).nonzero()[:, 0]
    if not len(trained_N):
        return _forward(model, pack, input_ids_T, torch.zeros_like(input_ids_T[:1])).sum() * 0.0
    logits_NV = _forward(model, pack, input_ids_T, trained_N)
    return F.cross_entropy(logits_NV.float(), labels_T[trained_N], reduction="sum")


def _forward(model: nn.Module, pack: Pack, input_ids_T: Tensor, positions_N: Tensor) -> Tensor:
    device = input_ids_T.device
    output = model(
        input_ids=input_ids_T[None],
        position_ids=torch.tensor(pack["position_ids"], device=device)[None],
        attention_mask=tree_mask(torch.tensor(pack["subtree_end"], device=device)),
        # Without this transformers may build a mask of its own.
        use_cache=False,
        logits_to_keep=positions_N,
    )
    logits_NV: Tensor = output.logits[0]
    return logits_NV
