"""worker, all ranks: the fallback for models that can't be packed. The branches of a pack form a right-padded batch.

The validation task computes its loss this way for every model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.output_head import compute_target_loss

# B = branches, L = tokens of the longest branch


@dataclass(frozen=True)
class Branch:
    """A path from the root of a pack's tree to a leaf: what plain transformers reads as one row."""

    positions: list[int]
    """Indices of its tokens in the pack."""
    input_ids: list[int]
    labels: list[int]
    """As in the pack, but a target token that several branches share is in the labels of the first one only."""


def unpack_branches(pack: Pack) -> list[Branch]:
    """Split a pack into its branches, in order; together they have exactly the target tokens of the pack."""
    branches: list[Branch] = []
    path: list[int] = []
    input_ids, labels = np.array(pack["input_ids"]), np.array(pack["labels"])
    subtree_end = np.asarray(pack["subtree_end"]).tolist()
    for index, end in enumerate(subtree_end):
        while path and subtree_end[path[-1]] <= index:
            path.pop()
        path.append(index)
        if end == index + 1:
            branches.append(Branch(path.copy(), input_ids[path].tolist(), labels[path].tolist()))
            # The next branches may share these tokens.
            labels[path] = IGNORE_INDEX
    return branches


def select_branches(pack: Pack, branches: list[Branch]) -> Pack:
    """The pack reduced to some of its branches."""
    kept = np.unique(np.concatenate([branch.positions for branch in branches]))
    labels = np.asarray(pack["labels"])[kept]
    return Pack(
        input_ids=np.asarray(pack["input_ids"])[kept],
        position_ids=np.asarray(pack["position_ids"])[kept],
        labels=labels,
        # One past the last token that is kept of each subtree.
        subtree_end=np.searchsorted(kept, np.asarray(pack["subtree_end"])[kept]).astype(np.int32),
        num_trained=int((labels != IGNORE_INDEX).sum()),
        num_tokens=sum(len(branch.positions) for branch in branches),
        row_ids=pack["row_ids"],
    )


def num_padded_tokens(pack: Pack) -> int:
    """Number of tokens that the model computes for a pack in padded mode, padding included."""
    branches = unpack_branches(pack)
    return len(branches) * max(len(branch.input_ids) for branch in branches)


def padded_loss(
    model: nn.Module, pack: Pack, device: torch.device, aux_loss_coef: float = 0.0, *, in_chunks: bool = False
) -> Tensor:
    """The same loss as `pack_loss`, computed by plain transformers without a mask of ours.

    `aux_loss_coef` weighs the auxiliary loss of a mixture of experts, which is a mean over tokens. It is added once per
    target token, so that the mean of a step contains it with this weight, as in transformers' own loss.
    """
    branches = unpack_branches(pack)
    length = max(len(branch.input_ids) for branch in branches)

    def pad(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], device=device)

    labels_BL = pad([branch.labels for branch in branches], IGNORE_INDEX)
    is_target_BL = labels_BL != IGNORE_INDEX
    has_no_targets = not is_target_BL.any()
    if has_no_targets:
        is_target_BL[0, 0] = True

    def run() -> Any:
        return model(
            input_ids=pad([branch.input_ids for branch in branches], 0),
            # From the lengths: the padding id may also be a token.
            attention_mask=pad([[1] * len(branch.input_ids) for branch in branches], 0),
            use_cache=False,
            logits_to_keep=is_target_BL,
        )

    if has_no_targets:
        zero: Tensor = run().logits.sum() * 0.0
        return zero
    loss, output = compute_target_loss(model, labels_BL[is_target_BL], run, in_chunks=in_chunks)
    return loss + aux_loss_coef * output.aux_loss * is_target_BL.sum() if aux_loss_coef else loss
