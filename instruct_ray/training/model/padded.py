"""The fallback for models that packs would change: each branch of a pack's tree as a row of a right-padded batch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.tree import Pack

# B = branches, L = tokens of the longest, N = trained tokens, V = vocabulary


@dataclass(frozen=True)
class Branch:
    """A way from the root of a pack's tree to a leaf: what plain transformers would read as one row."""

    positions: list[int]
    """Where its tokens stand in the pack."""
    input_ids: list[int]
    labels: list[int]
    """As in the pack, but each trained position of the pack is trained in one branch only."""


def unpack_branches(pack: Pack) -> list[Branch]:
    """The branches of a pack, in its order; together they train on what the pack does."""
    branches: list[Branch] = []
    way: list[int] = []
    input_ids, labels = np.array(pack["input_ids"]), np.array(pack["labels"])
    subtree_end = np.asarray(pack["subtree_end"]).tolist()
    for index, end in enumerate(subtree_end):
        while way and subtree_end[way[-1]] <= index:
            way.pop()
        way.append(index)
        if end == index + 1:
            branches.append(Branch(way.copy(), input_ids[way].tolist(), labels[way].tolist()))
            # The next branches share some of these.
            labels[way] = IGNORE_INDEX
    return branches


def select_branches(pack: Pack, branches: list[Branch]) -> Pack:
    """The pack with only these of its branches."""
    kept = np.unique(np.concatenate([branch.positions for branch in branches]))
    labels = np.asarray(pack["labels"])[kept]
    return Pack(
        input_ids=np.asarray(pack["input_ids"])[kept],
        position_ids=np.asarray(pack["position_ids"])[kept],
        labels=labels,
        # Just past the last token kept of each subtree.
        subtree_end=np.searchsorted(kept, np.asarray(pack["subtree_end"])[kept]).astype(np.int32),
        num_trained=int((labels != IGNORE_INDEX).sum()),
        num_tokens=sum(len(branch.positions) for branch in branches),
        row_ids=pack["row_ids"],
    )


def num_padded_tokens(pack: Pack) -> int:
    """Tokens that the model computes for a pack run padded, the padding included."""
    branches = unpack_branches(pack)
    return len(branches) * max(len(branch.input_ids) for branch in branches)


def padded_loss(model: nn.Module, pack: Pack, device: torch.device, aux_loss_coef: float = 0.0) -> Tensor:
    """What `pack_loss` is, computed by plain transformers without a mask of ours.

    `aux_loss_coef` weighs the auxiliary loss of a mixture of experts, a mean over tokens: it is added once per trained
    token, so that the step's mean holds it with this weight, as transformers' own loss does.
    """
    branches = unpack_branches(pack)
    length = max(len(branch.input_ids) for branch in branches)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], device=device)

    labels_BL = padded([branch.labels for branch in branches], IGNORE_INDEX)
    trained_BL = labels_BL != IGNORE_INDEX
    is_empty = not trained_BL.any()
    if is_empty:
        trained_BL[0, 0] = True
    output: Any = model(
        input_ids=padded([branch.input_ids for branch in branches], 0),
        # By length: the id that pads may be a token as well.
        attention_mask=padded([[1] * len(branch.input_ids) for branch in branches], 0),
        use_cache=False,
        logits_to_keep=trained_BL,
    )
    logits_NV: Tensor = output.logits
    if is_empty:
        return logits_NV.sum() * 0.0
    loss = F.cross_entropy(logits_NV.float(), labels_BL[trained_BL], reduction="sum")
    return loss + aux_loss_coef * output.aux_loss * trained_BL.sum() if aux_loss_coef else loss
