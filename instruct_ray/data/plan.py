"""(seed, epoch, step, rank) -> packs: any step of any epoch can be named, whatever the number of ranks. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The order in which packs are trained on."""

    num_packs: int
    packs_per_step: int
    num_epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one takes the packs that are left."""
        return math.ceil(self.num_packs / self.packs_per_step)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_epochs * self.steps_per_epoch

    def packs(self, step: int) -> list[int]:
        """The packs of one step of the run, the same for every number of ranks."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_packs)
        start = step_in_epoch * self.packs_per_step
        return [int(index) for index in order[start : start + self.packs_per_step]]

    def packs_per_rank(self, world_size: int) -> int:
        """Packs that each rank gets in every step, so that all run the same collectives."""
        return math.ceil(self.packs_per_step / world_size)

    def share(self, step: int, rank: int, world_size: int) -> list[int | None]:
        """One rank's packs of a step; None where it has none and computes an empty one."""
        mine: list[int | None] = [*self.packs(step)[rank::world_size]]
        return mine + [None] * (self.packs_per_rank(world_size) - len(mine))

    def stream(self, start_step: int, rank: int, world_size: int) -> Iterator[int | None]:
        """One rank's packs from a step to the end of the run."""
        for step in range(start_step, self.num_steps):
            yield from self.share(step, rank, world_size)


def make_plan(num_packs: int, num_examples: int, examples_per_step: int, num_epochs: int, seed: int) -> Plan:
    """The plan that comes nearest to `examples_per_step` with whole packs."""
    packs_per_step = max(1, round(examples_per_step * num_packs / num_examples))
    return Plan(num_packs, min(packs_per_step, num_packs), num_epochs, seed)
