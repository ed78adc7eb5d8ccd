"""Every 95 % interval contains the truth in 93 % of simulated samples or more, groups of related rows included.

A cell is one size of sample, kind of groups, correlation and truth. `slow` runs all cells; a few run always.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import binom

from instruct_ray.evidence.statistics.accuracy import accuracy_interval, paired_accuracy_difference
from instruct_ray.evidence.statistics.macro_f1 import paired_macro_f1_difference
from instruct_ray.evidence.statistics.means import paired_mean_difference
from instruct_ray.evidence.statistics.quantiles import quantile_interval
from tests.evidence.statistics.simulation import (
    Codes,
    Coverage,
    draw_groups,
    draw_in_groups,
    draw_outcomes,
    measure_coverage,
)

SIZES = (30, 60, 120, 300, 500)
KINDS = ("one", "two", "three", "paraphrases", "skewed", "large")
RHOS = (0.0, 0.5, 1.0)
# (share of discordant rows, true difference)
TABLES = ((0.03, 0.01), (0.02, 0.02), (0.1, 0.0), (0.1, 0.05), (0.3, 0.1), (0.3, 0.3))
# (share of differing rows, share of these that are gains, magnitude of a difference)
SCORES = (
    (0.05, 0.5, "uniform"),
    (0.1, 0.9, "small"),
    (0.2, 1.0, "uniform"),
    (0.4, 0.7, "small"),
    (0.9, 0.6, "uniform"),
)
NUM_SLOW = 500
NUM_FAST = 200


def cells(kind: str) -> list[tuple[int, float]]:
    """(rows, rho) of one kind of groups."""
    return list(itertools.product(SIZES, (0.0,) if kind == "one" else RHOS))


def accuracy_difference_coverage(
    kind: str, num_rows: int, rho: float, table: tuple[float, float], num: int
) -> Coverage:
    rng = np.random.default_rng(0)

    def intervals() -> Iterator[tuple[float | None, float | None]]:
        for _ in range(num):
            codes = draw_groups(kind, num_rows, rng)
            a, b = draw_outcomes(*table, codes, rho, rng)
            difference = paired_accuracy_difference(a.tolist(), b.tolist(), codes.tolist())
            yield difference.lower, difference.upper

    return measure_coverage(intervals(), table[1])


def accuracy_coverage(kind: str, num_rows: int, rho: float, accuracy: float, num: int) -> Coverage:
    rng = np.random.default_rng(0)

    def intervals() -> Iterator[tuple[float | None, float | None]]:
        for _ in range(num):
            codes = draw_groups(kind, num_rows, rng)
            right = draw_in_groups(rng.random, codes, rho, rng) < accuracy
            found = accuracy_interval(right.tolist(), codes.tolist())
            yield found.lower, found.upper

    return measure_coverage(intervals(), accuracy)


def mean_difference_coverage(
    kind: str, num_rows: int, rho: float, scores: tuple[float, float, str], num: int, *, within_0_1: bool
) -> Coverage:
    rng = np.random.default_rng(0)
    share, gains, magnitude = scores
    draw = {"uniform": rng.random, "small": lambda count: rng.beta(0.5, 2, count)}[magnitude]
    truth = share * (2 * gains - 1) * {"uniform": 0.5, "small": 0.2}[magnitude]

    def intervals() -> Iterator[tuple[float | None, float | None]]:
        for _ in range(num):
            codes = draw_groups(kind, num_rows, rng)
            gain, loss = draw_outcomes(share, share * (2 * gains - 1), codes, rho, rng)
            size = draw_in_groups(draw, codes, rho, rng)
            difference = paired_mean_difference(
                (gain * size).tolist(), (loss * size).tolist(), codes.tolist(), within_0_1=within_0_1
            )
            yield difference.lower, difference.upper

    return measure_coverage(intervals(), truth)


def draw_labels(
    codes: Codes, accuracies: tuple[float, float], labels: tuple[int, float], rho: float, rng: np.random.Generator
) -> list[list[str]]:
    """Expected labels and the answers of two arms; a wrong answer may be outside the labels."""
    num_labels, skew = labels
    shares = np.arange(1, num_labels + 1) ** -skew
    expected = rng.choice(num_labels, len(codes), p=shares / shares.sum())
    # Some rows are hard for both arms.
    hard, columns = draw_in_groups(rng.random, codes, rho, rng), [expected]
    for accuracy in accuracies:
        own = draw_in_groups(rng.random, codes, rho, rng)
        wrong = (expected + rng.integers(1, num_labels + 1, len(codes))) % (num_labels + 1)
        columns.append(np.where(np.where(rng.random(len(codes)) < 0.7, hard, own) < accuracy, expected, wrong))
    return [[f"label{value}" for value in column] for column in columns]


def macro_f1_coverage(
    kind: str, num_rows: int, rho: float, accuracies: tuple[float, float], labels: tuple[int, float], num: int
) -> Coverage:
    rng = np.random.default_rng(0)
    expected, a, b = draw_labels(np.arange(300_000), accuracies, labels, 0.0, rng)
    truth = paired_macro_f1_difference(a, b, expected, [0] * len(expected)).estimate

    def intervals() -> Iterator[tuple[float | None, float | None]]:
        for _ in range(num):
            codes = draw_groups(kind, num_rows, rng)
            expected, a, b = draw_labels(codes, accuracies, labels, rho, rng)
            difference = paired_macro_f1_difference(a, b, expected, codes.tolist())
            yield difference.lower, difference.upper

    return measure_coverage(intervals(), truth)


def check(found: dict[tuple[object, ...], Coverage]) -> None:
    """Print all, the lowest last, and check all that rest on 100 samples."""
    found = {cell: coverage for cell, coverage in found.items() if coverage.num_intervals >= 100}
    assert found
    for cell, coverage in sorted(found.items(), key=lambda item: -item[1].share):
        print(f"{coverage.share:.3f} of {coverage.num_intervals}: {cell}")
    assert not {cell: coverage for cell, coverage in found.items() if coverage.is_below_93_percent}


@pytest.mark.parametrize("num_rows", [30, 60, 120, 300, 500])
def test_wilson_exactly(num_rows: int) -> None:
    counts = np.arange(num_rows + 1)
    found = [accuracy_interval(right.tolist(), range(num_rows)) for right in np.tri(num_rows + 1, num_rows, -1)]
    lower, upper = (np.array([bounds]) for bounds in ([x.lower for x in found], [x.upper for x in found]))
    accuracies = np.linspace(0.5, 0.9999, 2000)[:, None]
    covered = (binom.pmf(counts, num_rows, accuracies) * ((lower <= accuracies) & (accuracies <= upper))).sum(axis=1)
    # Counts are whole numbers, so that coverage jumps: it is lowest at isolated accuracies.
    assert covered.min() > 0.915 and np.mean(covered < 0.93) < 0.05
    assert np.convolve(covered, np.ones(80) / 80, "valid").min() > 0.94


@pytest.mark.parametrize("num_values", [72, 120, 300, 500])
def test_quantiles_exactly(num_values: int) -> None:
    for probability in (0.5, 0.95):
        found = quantile_interval([float(value) for value in range(num_values)], probability)
        assert found.lower is not None and found.upper is not None
        # Values below the quantile are binomial, and the bounds are order statistics.
        covered = binom.cdf(found.upper, num_values, probability) - binom.cdf(found.lower, num_values, probability)
        assert covered >= 0.95


def test_a_few_cells() -> None:
    check(
        {
            ("difference", "one"): accuracy_difference_coverage("one", 120, 0.0, (0.1, 0.05), NUM_FAST),
            ("difference", "three"): accuracy_difference_coverage("three", 120, 0.5, (0.03, 0.01), NUM_FAST),
            ("difference", "skewed"): accuracy_difference_coverage("skewed", 300, 1.0, (0.1, 0.05), NUM_FAST),
            ("accuracy", "paraphrases"): accuracy_coverage("paraphrases", 120, 0.5, 0.9, NUM_FAST),
            ("mean", "one"): mean_difference_coverage("one", 60, 0.0, SCORES[2], NUM_FAST, within_0_1=True),
            ("mean", "three"): mean_difference_coverage("three", 300, 0.5, SCORES[4], NUM_FAST, within_0_1=False),
            ("macro F1", "three"): macro_f1_coverage("three", 120, 0.5, (0.9, 0.7), (3, 0.0), NUM_FAST),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_differences(kind: str) -> None:
    grid = itertools.product(cells(kind), TABLES)
    check({(kind, *cell, table): accuracy_difference_coverage(kind, *cell, table, NUM_SLOW) for cell, table in grid})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_accuracies(kind: str) -> None:
    grid = itertools.product(cells(kind), (0.5, 0.8, 0.95, 0.98))
    check({(kind, *cell, share): accuracy_coverage(kind, *cell, share, NUM_SLOW) for cell, share in grid})


@pytest.mark.slow
@pytest.mark.parametrize("within_0_1", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_mean_differences(kind: str, within_0_1: bool) -> None:
    grid = itertools.product(cells(kind), SCORES)
    check(
        {
            (kind, *cell, scores): mean_difference_coverage(kind, *cell, scores, NUM_SLOW, within_0_1=within_0_1)
            for cell, scores in grid
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_macro_f1_differences(kind: str) -> None:
    grid = itertools.product(cells(kind), ((0.8, 0.8), (0.95, 0.85)), ((3, 0.0), (8, 1.0)))
    check(
        {
            (kind, *cell, accuracies, labels): macro_f1_coverage(kind, *cell, accuracies, labels, NUM_SLOW // 2)
            for cell, accuracies, labels in grid
        }
    )
