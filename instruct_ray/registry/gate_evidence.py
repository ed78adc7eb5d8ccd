"""What the rules of the gate need of `evidence.json` and `benchmarks.json`, read in one place. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instruct_ray.evidence.benchmarks.file import BenchmarkComparison, BenchmarksFile

TUNED, CHAMPION = "tuned", "champion"
# Arms of the base model. Other models that were asked too are shown beside, but a version need not beat them.
PROMPTING_PREFIXES = ("zero_shot", "few_shot", "rag")


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies with its interval, as fractions."""

    estimate: float
    lower: float
    upper: float
    num_rows: int


@dataclass(frozen=True)
class SliceDifference:
    """Tuned minus the best prompting arm on some of the test rows."""

    name: str
    """Kind and name, such as `label=High`."""
    num_rows: int
    difference: Difference | None
    """None if the slice has too few rows for an interval."""
    has_enough_rows: bool = True
    """Whether its rows could exclude a small loss; otherwise only a large one can be shown."""


@dataclass(frozen=True)
class BenchmarkDifference:
    """Tuned minus base on a benchmark of general skill."""

    difference: Difference | None
    """None if it has too few questions for an interval."""
    problem: str | None
    """Why the benchmark can't show a loss; None if it can."""


@dataclass(frozen=True)
class GateEvidence:
    """The values that the rules judge. None means that the evidence does not have them."""

    num_test: int | None
    accuracies: Mapping[str, float]
    """Accuracy of each arm."""
    tuned_arm: str
    """The arm of the tuned model that the verdict is about."""
    comparisons: Mapping[str, Difference]
    """By `A - B`: the accuracy of arm A minus that of arm B; without those that have no interval."""
    champion_version: str | None
    """Number of the version that the arm `champion` is."""
    slices: tuple[SliceDifference, ...] | None
    contract_digest: str | None
    test_digest: str | None
    benchmarks: Mapping[str, BenchmarkDifference]
    """By name; empty if `instruct-ray benchmark` was not run."""

    @property
    def prompting_arms(self) -> list[str]:
        """The arms that prompt the base model, best first."""
        arms = [arm for arm in self.accuracies if arm.startswith(PROMPTING_PREFIXES)]
        return sorted(arms, key=lambda arm: -self.accuracies[arm])


def read_gate_evidence(values: Mapping[str, Any], benchmarks: BenchmarksFile | None = None) -> GateEvidence:
    """Build the input of the rules.

    Args:
        values: the content of `evidence.json`, of this or an earlier version.
        benchmarks: that of `benchmarks.json`; None if there is none.
    """
    slices = values.get("slices")
    return GateEvidence(
        num_test=values.get("num_test"),
        accuracies={arm: float(metrics["accuracy"]) for arm, metrics in values["arms"].items()},
        tuned_arm=values.get("verdict", {}).get("tuned_arm", TUNED),
        # Where there are too few groups of rows, a difference has no interval.
        comparisons={
            name: _read_difference(one)
            for name, one in values.get("comparisons", {}).items()
            if one["lower"] is not None
        },
        champion_version=values.get("champion_version"),
        slices=None if slices is None else tuple(_read_slice(one) for one in slices),
        contract_digest=values.get("contract_digest"),
        test_digest=values.get("test_digest"),
        benchmarks={} if benchmarks is None else {
            name: BenchmarkDifference(_read_comparison(one.comparison), one.problem)
            for name, one in benchmarks.benchmarks.items()
        },
    )  # fmt: skip


def _read_slice(values: Mapping[str, Any]) -> SliceDifference:
    return SliceDifference(
        f"{values['kind']}={values['name']}",
        int(values["num_rows"]),
        _read_optional(values["comparison"]),
        bool(values["judged"]),
    )


def _read_comparison(comparison: BenchmarkComparison) -> Difference | None:
    if comparison.lower is None or comparison.upper is None:
        return None
    return Difference(comparison.estimate, comparison.lower, comparison.upper, comparison.num_rows)


def _read_optional(values: Mapping[str, Any] | None) -> Difference | None:
    return None if values is None else _read_difference(values)


def _read_difference(values: Mapping[str, Any]) -> Difference:
    return Difference(
        float(values["estimate"]), float(values["lower"]), float(values["upper"]), int(values["num_rows"])
    )
