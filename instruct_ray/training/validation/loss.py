"""worker, all ranks: the validation loss, computed with the weights that are being trained."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from instruct_ray.data.packs.tree import Pack, empty_pack
from instruct_ray.training.distributed.collectives import gather_objects
from instruct_ray.training.distributed.engine import DeepSpeedEngine


class ValidationLoss:
    """Computes the loss of the validation packs, each rank that of its share.

    The result is the same for any number of ranks, as far as the losses of the packs are.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        loss_fn: Callable[[nn.Module, Pack, torch.device], tuple[Tensor, int]],
        rank: int,
        world_size: int,
    ) -> None:
        """`packs` are all packs, the same on every rank; `loss_fn` is that of training, see `PackLossFn`."""
        share = list(packs[rank::world_size])
        # All ranks run the same number of forward passes: at ZeRO-3 each of them is collective.
        self._packs = [*share, *[empty_pack()] * (math.ceil(len(packs) / world_size) - len(share))]
        self._num_target_tokens = sum(pack["num_trained"] for pack in packs)
        self._loss_fn = loss_fn

    @torch.no_grad()
    def compute(self, engine: DeepSpeedEngine) -> float:
        """Compute the mean loss over the target tokens, in nats, without dropout. Collective."""
        engine.model.eval()
        try:
            losses = [self._loss_fn(engine.model, pack, engine.device)[0] for pack in self._packs]
        finally:
            engine.model.train()
        local_losses = torch.stack(losses).double().tolist()
        # An exact sum, so that it does not depend on the order: not on the number of ranks.
        return math.fsum(loss for rank_losses in gather_objects(local_losses) for loss in rank_losses) / (
            self._num_target_tokens
        )
