"""Conformal quantiles have the finite-sample rank, and cover new cases as often as they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medseg.inference.quality.conformal import conformal_interval, conformal_quantile, least_cases


@pytest.mark.parametrize(
    ("cases", "coverage", "rank"),
    [(9, 0.9, 9), (10, 0.9, 10), (18, 0.9, 18), (19, 0.9, 18), (99, 0.9, 90), (99, 0.95, 95), (1, 0.5, 1)],
)
def test_the_rank_is_that_of_one_more_case(cases, coverage, rank):
    scores = np.random.default_rng(cases).permutation(np.arange(1, cases + 1))
    assert conformal_quantile(scores, coverage) == rank


@pytest.mark.parametrize(("cases", "coverage"), [(8, 0.9), (18, 0.95), (0, 0.5)])
def test_too_few_cases_have_no_finite_quantile(cases, coverage):
    assert conformal_quantile(np.zeros(cases), coverage) == math.inf


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.96])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_least_number_of_cases_is_the_first_with_a_finite_end(coverage, sides):
    def is_finite(cases):
        values = np.arange(cases, dtype=float)
        ends = conformal_interval(values, coverage) if sides == 2 else (conformal_quantile(values, coverage),)
        return all(map(math.isfinite, ends))

    least = least_cases(coverage, sides=sides)
    assert is_finite(least)
    assert not is_finite(least - 1)


def test_infinite_residuals_move_the_end_to_infinity_only_where_they_are_needed():
    residuals = np.array([-math.inf, *range(38)])
    low, high = conformal_interval(residuals, 0.9)
    assert (low, high) == (0.0, 36.0)
    assert conformal_interval([-math.inf, -math.inf, *range(37)], 0.9)[0] == -math.inf


@pytest.mark.parametrize("cases", [19, 30, 164])
def test_new_cases_are_covered_as_often_as_claimed(cases):
    random = np.random.default_rng(cases)
    studies, inside = 4000, 0
    for values in random.lognormal(
        size=(studies, cases + 1)
    ):  # skewed: the guarantee holds for any distribution
        low, high = conformal_interval(values[:-1], 0.9)
        inside += low <= values[-1] <= high
    sampling = 3 * math.sqrt(0.09 / studies)
    assert 0.9 - sampling <= inside / studies <= 0.9 + 2 / (cases + 1) + sampling
