"""Holm's correction against statsmodels."""

import pytest
from statsmodels.stats.multitest import multipletests

from instruct_ray.evidence.statistics.holm import adjust_holm


@pytest.mark.parametrize("p_values", [[0.02], [0.04, 0.01, 0.03, 0.01], [0.9, 0.0, 0.5, 0.2, 1.0]])
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert adjust_holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_no_tests() -> None:
    assert adjust_holm([]) == []
