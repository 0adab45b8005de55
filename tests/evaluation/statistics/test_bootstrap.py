"""Bootstrap intervals against the binomial distribution and against drawing one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medseg.evaluation.statistics.bootstrap import (
    Interval,
    mean_of_known,
    resampled_means,
    unseen_failure_rate,
)
from medseg.evaluation.statistics.table_intervals import cautions


@pytest.mark.parametrize(("subjects", "ones"), [(50, 15), (200, 150), (9, 3)])
def test_zeros_and_ones_are_drawn_binomially(subjects, ones):
    values = np.arange(subjects)[:, None] < ones
    names = [f"s{number}" for number in range(subjects)]
    draws = resampled_means(values.astype(float), names, draws=20_000)[:, 0]
    truth = stats.binom(subjects, ones / subjects)
    interval = Interval.from_draws(draws, subjects)
    outside = stats.norm.sf(stats.t(subjects - 1).ppf(0.975) * (subjects / (subjects - 1)) ** 0.5)
    assert outside < 0.025
    # A percentile falls on one of the steps of 1/n, or beside it if the distribution jumps there.
    assert interval.low == pytest.approx(truth.ppf(outside) / subjects, abs=1.01 / subjects)
    assert interval.high == pytest.approx(truth.ppf(1 - outside) / subjects, abs=1.01 / subjects)
    assert draws.mean() == pytest.approx(
        truth.mean() / subjects, abs=4 * truth.std() / subjects / 20_000**0.5
    )
    assert draws.std() == pytest.approx(truth.std() / subjects, rel=0.03)


def test_a_subject_with_many_cases_counts_once():
    values = np.random.default_rng(3).random((12, 2))
    names = [f"s{number:02}" for number in range(12)]
    once = resampled_means(values, names)
    thrice = resampled_means(np.repeat(values, 3, axis=0), np.repeat(names, 3).tolist())
    assert np.allclose(once, thrice, rtol=0, atol=1e-12)
    alone = resampled_means(np.repeat(values, 3, axis=0), [str(number) for number in range(36)])
    assert alone[:, 0].std() < 0.8 * once[:, 0].std()  # as if there were three times the people


def test_draws_of_many_subjects_are_the_same_in_parts(monkeypatch):
    values, names = np.random.default_rng(3).random((40, 3)), [f"s{number % 30}" for number in range(40)]
    together = resampled_means(values, names)
    monkeypatch.setattr("medseg.evaluation.statistics.bootstrap._MOST_WEIGHTS", 30 * 7)
    assert np.allclose(resampled_means(values, names), together, rtol=0, atol=1e-13)


def test_every_draw_is_a_mean_over_the_cases_of_its_subjects():
    values = np.array([[1.0, 2.0], [np.nan, 4.0], [5.0, np.inf], [7.0, 8.0]])
    owner = ["b", "a", "b", "c"]
    draws = resampled_means(values, owner, seed=5, draws=300)
    times = np.random.default_rng(5).multinomial(3, [1 / 3] * 3, 300)  # of a, b, c
    for drawn, row in zip(times, draws, strict=True):
        cases = [
            i
            for name, n in zip("abc", drawn, strict=True)
            for i in np.flatnonzero(np.array(owner) == name).tolist() * n
        ]
        for column in range(2):
            known = [v for v in values[cases, column] if np.isfinite(v)]
            assert row[column] == pytest.approx(np.mean(known)) if known else np.isnan(row[column])
    assert np.isnan(draws[:, 0]).any()  # a draw of subject a alone
    assert np.array_equal(draws, resampled_means(values, owner, seed=5, draws=300), equal_nan=True)


def test_label_without_measurements_has_no_interval():
    empty = Interval.from_draws(resampled_means(np.full((4, 1), np.nan), list("abcd"))[:, 0], 4)
    assert np.isnan([empty.low, empty.high]).all()
    assert str(empty) == "unknown"
    alone = Interval.from_draws(resampled_means(np.array([[0.9], [0.8]]), ["a", "a"])[:, 0], 1)
    assert np.isnan([alone.low, alone.high]).all()
    assert np.array_equal(
        mean_of_known(np.array([[1, np.nan, 3], [np.nan] * 3])), [2, np.nan], equal_nan=True
    )
    assert 0.5 in Interval(0.4, 0.6)
    assert 0.7 not in Interval(0.4, 0.6)


@pytest.mark.parametrize("subjects", [10, 40])
def test_intervals_cover_the_mean_of_normal_values_as_often_as_they_claim(subjects):
    random = np.random.default_rng(0)
    names = [str(number) for number in range(subjects)]
    values = random.normal(0.8, 0.1, (subjects, 1500))  # each column is one study
    draws = resampled_means(values, names, draws=1000)
    covered = [0.8 in Interval.from_draws(study, subjects) for study in draws.T]
    assert 0.92 < np.mean(covered) < 0.97


@pytest.mark.parametrize("subjects", [1, 2, 40, 1000])
def test_failures_of_the_unseen_rate_are_absent_from_one_study_in_twenty(subjects):
    rate = unseen_failure_rate(subjects)
    assert stats.binom(subjects, rate).pmf(0) == pytest.approx(0.05)
    if subjects >= 40:
        assert rate == pytest.approx(3 / subjects, rel=0.05)  # the rule of three


@pytest.mark.parametrize(("subjects", "sentences"), [(1, 1), (2, 2), (39, 2), (40, 1), (99, 1), (100, 0)])
def test_pages_warn_of_few_subjects_and_of_failures_that_they_may_not_show(subjects, sentences):
    assert len(cautions(subjects)) == sentences


def test_a_study_without_failures_is_the_same_in_both_populations():
    """No interval from the values alone can cover both means: this is the argument of the documentation."""
    random = np.random.default_rng(0)
    names = [str(number) for number in range(40)]
    values = random.beta(20, 2, (40, 400))
    draws = resampled_means(values, names, draws=1000)
    lows = [Interval.from_draws(study, 40).low for study in draws.T]
    assert np.mean(np.array(lows) > 0.95 * 20 / 22) > 0.95
