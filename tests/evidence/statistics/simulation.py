"""Simulated held-out rows in correlated groups, and the coverage of an interval on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Coverage:
    """How often an interval contained the truth."""

    num_intervals: int
    """Samples that had an interval."""
    num_covered: int

    @property
    def share(self) -> float:
        return self.num_covered / self.num_intervals

    @property
    def is_below_93_percent(self) -> bool:
        """Whether it is, beyond twice the standard error of the simulation."""
        error = (0.93 * 0.07 / self.num_intervals) ** 0.5
        return self.share < 0.93 - 2 * error


def draw_groups(kind: str, num_rows: int, rng: np.random.Generator) -> Codes:
    """The group of each of about `num_rows` rows.

    `one`: one row a group. `two`, `three`: that many. `paraphrases`: 1 to 6, most often 1. `skewed`: up to 20.
    `large`: a tenth of the rows in one group.
    """
    if kind == "large":
        sizes = [num_rows // 10] + [1] * (num_rows - num_rows // 10)
    elif kind in ("one", "two", "three"):
        size = ("one", "two", "three").index(kind) + 1
        sizes = [size] * (num_rows // size)
    else:
        drawn = rng.choice([1, 1, 1, 2, 3, 6], num_rows) if kind == "paraphrases" else rng.geometric(0.25, num_rows)
        sizes = drawn.clip(max=20)[: int(np.searchsorted(drawn.clip(max=20).cumsum(), num_rows)) + 1].tolist()
    return np.repeat(np.arange(len(sizes)), sizes)


def draw_in_groups(draw: Callable[[int], Floats], codes: Codes, rho: float, rng: np.random.Generator) -> Floats:
    """Values of which two of one group are the same draw with probability rho²; shape [rows]."""
    shared = draw(int(codes.max()) + 1)[codes]
    return np.where(rng.random(len(codes)) < rho, shared, draw(len(codes)))


def draw_outcomes(
    discordant: float, difference: float, codes: Codes, rho: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether arms a and b are right; arm a is right more often by `difference`."""
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    outcomes = draw_in_groups(lambda count: rng.choice([1.0, -1.0, 0.0], count, p=shares), codes, rho, rng)
    return outcomes > 0, outcomes < 0


def measure_coverage(intervals: Iterator[tuple[float | None, float | None]], truth: float) -> Coverage:
    """Count over the intervals that exist."""
    known = [(lower, upper) for lower, upper in intervals if lower is not None and upper is not None]
    return Coverage(len(known), sum(lower <= truth + 1e-12 and truth - 1e-12 <= upper for lower, upper in known))
