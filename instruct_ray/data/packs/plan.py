"""(seed, epoch, step, rank) -> packs: any step of any epoch can be named, whatever the number of ranks. Pure.

An epoch is a line of all packs: the row groups in a random order, the packs of each shuffled. The line is cut into as
many equal lanes as a step has packs, and step s takes the s-th pack of every lane. So each lane is read from one end to
the other, a step mixes packs from all over the data, and nothing larger than the list of row groups is held in memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

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

    @property
    def num_packs(self) -> int:
        """Packs in an epoch."""
        return sum(self.row_groups)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, which is also the length of a lane; the last lanes may be shorter."""
        return math.ceil(self.num_packs / self.packs_per_step)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_epochs * self.steps_per_epoch

    def pack_at(self, step: int, slot: int) -> int | None:
        """The index of the pack that a lane gives to a step; None past the lane's end."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = slot * self.steps_per_epoch + step_in_epoch
        return None if position >= self.num_packs else _epoch_order(self.row_groups, self.seed, epoch).pack_at(position)

    def step_packs(self, step: int) -> list[int]:
        """The packs of one step of the run, the same for every number of ranks."""
        found = (self.pack_at(step, slot) for slot in range(self.packs_per_step))
        return [index for index in found if index is not None]

    def packs_per_rank(self, world_size: int) -> int:
        """Packs that each rank gets in every step, so that all run the same collectives."""
        return math.ceil(self.packs_per_step / world_size)

    def rank_packs(self, step: int, rank: int, world_size: int) -> list[int | None]:
        """One rank's packs of a step; None where it has none and computes an empty one."""
        mine = [self.pack_at(step, slot) for slot in range(rank, self.packs_per_step, world_size)]
        return mine + [None] * (self.packs_per_rank(world_size) - len(mine))

    def iter_rank_packs(self, start_step: int, rank: int, world_size: int) -> Iterator[int | None]:
        """One rank's packs from a step to the end of the run."""
        for step in range(start_step, self.num_steps):
            yield from self.rank_packs(step, rank, world_size)


def make_plan(
    row_groups: tuple[int, ...], num_examples: int, examples_per_step: int, num_epochs: int, seed: int
) -> BatchPlan:
    """The plan that comes nearest to `examples_per_step` with whole packs."""
    num_packs = sum(row_groups)
    packs_per_step = max(1, round(examples_per_step * num_packs / num_examples))
    return BatchPlan(row_groups, min(packs_per_step, num_packs), num_epochs, seed)


class _EpochOrder:
    """The line of an epoch's packs, evaluated where it is asked."""

    def __init__(self, row_groups: tuple[int, ...], seed: int, epoch: int) -> None:
        self._seed = (seed, epoch)
        sizes = np.array(row_groups, dtype=np.int64)
        self._order = np.random.default_rng(self._seed).permutation(len(sizes))
        self._first_pack = np.array([0, *accumulate(row_groups)], dtype=np.int64)
        # Where each row group of the order begins on the line.
        self._starts = np.concatenate(([0], np.cumsum(sizes[self._order])))
        self._sizes = sizes
        self._shuffled = lru_cache(maxsize=4096)(self._shuffle)

    def pack_at(self, position: int) -> int:
        place = int(np.searchsorted(self._starts, position, side="right")) - 1
        group = int(self._order[place])
        return int(self._first_pack[group] + self._shuffled(group)[position - self._starts[place]])

    def _shuffle(self, group: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self._seed, group]).permutation(int(self._sizes[group]))


@lru_cache(maxsize=2)
def _epoch_order(row_groups: tuple[int, ...], seed: int, epoch: int) -> _EpochOrder:
    return _EpochOrder(row_groups, seed, epoch)
