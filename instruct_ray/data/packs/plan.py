"""(seed, epoch, step, rank) -> packs. Random access to any step, for any number of ranks. Pure.

An epoch orders all packs: row groups in random order, with the packs of each shuffled. The order is cut into
`packs_per_step` slots of equal length, and step s takes the s-th pack of every slot. So each slot is read sequentially,
a step mixes packs from all over the data set, and memory holds nothing larger than the list of row groups.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BatchPlan:
    """The order in which packs are trained on."""

    row_groups: tuple[int, ...]
    """Packs in each row group."""
    packs_per_step: int
    num_epochs: int
    seed: int

    @cached_property
    def num_packs(self) -> int:
        """Packs in an epoch."""
        return sum(self.row_groups)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch. Also the length of a slot; the last slots may be shorter."""
        return math.ceil(self.num_packs / self.packs_per_step)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_epochs * self.steps_per_epoch

    def pack_at(self, step: int, slot: int) -> int | None:
        """The index of a slot's pack at a step; None past the end of the slot."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = slot * self.steps_per_epoch + step_in_epoch
        return None if position >= self.num_packs else self._epoch_order(epoch).pack_at(position)

    def step_packs(self, step: int) -> list[int]:
        """The packs of a step; the same for every number of ranks."""
        packs = (self.pack_at(step, slot) for slot in range(self.packs_per_step))
        return [index for index in packs if index is not None]

    def packs_per_rank(self, world_size: int) -> int:
        """Packs per rank and step; equal on all ranks, so that all run the same collectives."""
        return math.ceil(self.packs_per_step / world_size)

    def rank_packs(self, step: int, rank: int, world_size: int) -> list[int | None]:
        """The packs of one rank at a step, padded to `packs_per_rank` with None for empty packs."""
        packs = [self.pack_at(step, slot) for slot in range(rank, self.packs_per_step, world_size)]
        return packs + [None] * (self.packs_per_rank(world_size) - len(packs))

    def iter_rank_packs(self, start_step: int, rank: int, world_size: int) -> Iterator[int | None]:
        """The packs of one rank from a step to the end of the run."""
        for step in range(start_step, self.num_steps):
            yield from self.rank_packs(step, rank, world_size)

    def _epoch_order(self, epoch: int) -> "_EpochOrder":
        """The order of an epoch. Only the last two are kept: finding one by its row groups would read all of them."""
        if epoch not in self._epoch_orders:
            while len(self._epoch_orders) > 1:
                del self._epoch_orders[min(self._epoch_orders)]
            self._epoch_orders[epoch] = _EpochOrder(self.row_groups, self.seed, epoch)
        return self._epoch_orders[epoch]

    @cached_property
    def _epoch_orders(self) -> "dict[int, _EpochOrder]":
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, without what is computed from them."""
        return {field.name: self.__dict__[field.name] for field in fields(self)}


def make_plan(
    row_groups: tuple[int, ...], num_examples: int, examples_per_step: int, num_epochs: int, seed: int
) -> BatchPlan:
    """Make the plan whose steps of whole packs come closest to `examples_per_step`."""
    num_packs = sum(row_groups)
    packs_per_step = max(1, round(examples_per_step * num_packs / num_examples))
    return BatchPlan(row_groups, min(packs_per_step, num_packs), num_epochs, seed)


class _EpochOrder:
    """The shuffled packs of an epoch, computed on demand."""

    def __init__(self, row_groups: tuple[int, ...], seed: int, epoch: int) -> None:
        self._seed = (seed, epoch)
        self._sizes = np.array(row_groups, dtype=np.int64)
        self._group_order = np.random.default_rng(self._seed).permutation(len(self._sizes))
        # Index of the first pack of each row group.
        self._first_packs = np.array([0, *accumulate(row_groups)], dtype=np.int64)
        # Position in the epoch at which each row group of `_group_order` starts.
        self._start_positions = np.concatenate(([0], np.cumsum(self._sizes[self._group_order])))
        self._shuffled = lru_cache(maxsize=4096)(self._shuffle)

    def pack_at(self, position: int) -> int:
        """The index of the pack at a position of the epoch."""
        order_index = int(np.searchsorted(self._start_positions, position, side="right")) - 1
        group = int(self._group_order[order_index])
        offset = self._shuffled(group)[position - self._start_positions[order_index]]
        return int(self._first_packs[group] + offset)

    def _shuffle(self, group: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self._seed, group]).permutation(int(self._sizes[group]))
