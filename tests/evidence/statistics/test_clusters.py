"""The cluster-robust variance: statsmodels' for equal groups, and brute force for unequal ones."""

import numpy as np
import pytest
import statsmodels.api as sm

from instruct_ray.evidence.statistics.clusters import (
    cautious_design_effect,
    degrees_of_freedom,
    group_codes,
    grouped_mean,
)


def test_groups_are_numbered_in_order() -> None:
    assert group_codes(["b", "a", "b", ("c", 1)]).tolist() == [0, 1, 0, 2]


def test_equal_groups_are_as_in_statsmodels() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=25), 4) + rng.normal(size=100)
    codes = np.arange(100) // 4
    fit = sm.OLS(values, np.ones(100)).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    mean = grouped_mean(values, codes)
    assert mean.mean == pytest.approx(fit.params[0])
    # statsmodels' small-sample correction has (N - 1) / (N - K) = 1 besides G / (G - 1).
    assert mean.standard_error == pytest.approx(fit.bse[0])
    assert mean.degrees == pytest.approx(24)


def test_independent_rows_have_design_effect_1_and_copies_the_size_of_the_group() -> None:
    rng = np.random.default_rng(0)
    independent = grouped_mean(rng.normal(size=20_000), np.arange(20_000) // 4)
    assert independent.design_effect == pytest.approx(1, abs=0.1)
    copies = grouped_mean(np.repeat(rng.normal(size=5_000), 4), np.arange(20_000) // 4)
    assert copies.design_effect == pytest.approx(4, abs=0.1) and copies.max_design_effect == 4
    constant = grouped_mean(np.zeros(100), np.arange(100) // 4)
    assert constant.standard_error == 0 and constant.design_effect == 4


def test_few_informative_groups_have_a_cautious_design_effect() -> None:
    mean = grouped_mean(np.random.default_rng(0).normal(size=400), np.arange(400) // 4)
    assert cautious_design_effect(mean, 0) == 4
    assert mean.design_effect < cautious_design_effect(mean, 100) < cautious_design_effect(mean, 5) < 4


def test_degrees_of_freedom_by_brute_force() -> None:
    sizes = np.array([1, 2, 3, 7, 1, 4])
    shares, num_rows = sizes / sizes.sum(), sizes.sum()
    member = np.repeat(np.arange(6), sizes)[None] == np.arange(6)[:, None]
    weights = member / num_rows / np.sqrt(1 - shares)[:, None]
    residual = np.eye(num_rows) - 1 / num_rows
    covariance = weights @ residual @ weights.T
    independent = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    copies = (shares**2).sum() ** 2 / (shares**4).sum() - 1
    assert degrees_of_freedom(shares) == pytest.approx(min(independent, copies))


def test_one_large_group_leaves_few_degrees_of_freedom() -> None:
    assert degrees_of_freedom(np.array([90.0] + [1.0] * 831) / 921) < 2
