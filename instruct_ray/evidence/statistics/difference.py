"""The difference between two arms on the same rows, with its interval: the result of every paired comparison."""

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """How the interval of a difference was computed, or why there is none."""

    TANGO = "Tango's score interval; McNemar's mid-p"
    TANGO_GROUPS = "Tango's score interval of the effective number of rows, t quantile of the groups"
    CLUSTER_T = "t interval with CR2 variance over groups"
    BOUNDED = "Tango's score interval of the summed gains and losses"
    JACKKNIFE_T = "t interval with jackknife variance over groups"
    NO_ROWS = "no rows"
    TOO_FEW_GROUPS = "too few groups"
    TOO_FEW_DIFFERENCES = "too few groups in which the arms differ"
    TOO_FEW_ROWS_PER_LABEL = "too few rows per label"


@dataclass(frozen=True)
class Difference:
    """Arm a minus arm b on the same rows. Accuracies and scores are fractions, not points."""

    estimate: float
    """Mean of a minus mean of b; 0 without rows."""
    lower: float | None
    """Lower bound of the interval; None where none can be computed, and `method` says why."""
    upper: float | None
    """Upper bound; None exactly where `lower` is."""
    p_value: float | None
    """Two-sided p value of "no difference"; None where there is none."""
    num_rows: int
    num_groups: int
    num_discordant: int
    """Rows in which the two arms have different values."""
    method: Method
    design_effect: float = 1.0
    """Variance of the estimate over its variance if all rows were independent: 1 + (m - 1) rho for groups of m."""

    @property
    def discordant_share(self) -> float:
        """Share of the rows in which the arms differ."""
        return self.num_discordant / self.num_rows if self.num_rows else 0.0
