from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medseg.evaluation.statistics.paired_tests import holm_correction, paired_differences, rank_biserial


def cases(seed: int, subjects: int = 30, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    base = random.beta(9, 2, (subjects, 2))
    return np.clip(base + random.normal(shift, 0.02, base.shape), 0, 1), base


def test_a_clear_difference_is_found_and_counted() -> None:
    first, second = cases(0, shift=0.03)
    one, _ = paired_differences(first, second, ["liver", "spleen"], [str(i) for i in range(30)])
    difference = first[:, 0] - second[:, 0]
    assert one.mean == pytest.approx(difference.mean())
    assert (one.wins, one.losses, one.subjects) == ((difference > 0).sum(), (difference < 0).sum(), 30)
    assert 0 not in one.interval
    assert one.wilcoxon == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert one.permutation < 0.001
    assert one.holm >= one.permutation
    assert one.effect > 0.5
    assert paired_differences(second, first, ["a", "b"], [str(i) for i in range(30)])[0].mean == -one.mean


def test_few_subjects_are_permuted_exactly() -> None:
    difference = np.array([0.05, 0.02, 0.03, -0.01, 0.04])
    (found,) = paired_differences(difference[:, None], np.zeros((5, 1)), ["a"], list("abcde"))
    means = [np.mean(difference * signs) for signs in itertools.product((1, -1), repeat=5)]
    two_sided = 2 * np.mean(np.array(means) >= difference.mean() - 1e-12)
    assert found.permutation == pytest.approx(min(1, two_sided))


def test_cases_of_a_subject_are_one_observation() -> None:
    first, second = cases(1, 10)
    names = [str(i) for i in range(10)]
    once = paired_differences(first, second, ["a", "b"], names)
    thrice = paired_differences(
        np.repeat(first, 3, 0), np.repeat(second, 3, 0), ["a", "b"], np.repeat(names, 3).tolist()
    )
    assert [one.permutation for one in once] == [one.permutation for one in thrice]
    assert [one.subjects for one in thrice] == [10, 10]


def test_values_that_are_missing_in_one_method_and_ties_are_left_out() -> None:
    first = np.array([[0.5, np.nan], [0.6, np.nan], [0.7, np.nan]])
    same, unknown = paired_differences(first, first, ["same", "unknown"], list("abc"))
    assert (same.wins, same.losses, same.permutation, same.wilcoxon, same.effect) == (0, 0, 1, 1, 0)
    assert unknown.subjects == 0
    assert np.isnan([unknown.mean, unknown.permutation, unknown.holm, unknown.effect]).all()
    assert same.holm == 1


def test_holm_equals_the_rule_written_out() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(holm_correction(p), [0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm_correction(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("differences", "expected"), [([1, 2, 3], 1), ([-1, -2], -1), ([2, -1], 1 / 3), ([1, -1], 0), ([0, 0], 0)]
)
def test_rank_biserial(differences: list[float], expected: float) -> None:
    assert rank_biserial(np.array(differences, dtype=float)) == pytest.approx(expected)


def test_equal_methods_are_told_apart_as_rarely_as_the_level_says() -> None:
    rejected = 0
    for seed in range(150):
        first, second = cases(seed, subjects=8)
        (found,) = paired_differences(first[:, :1], second[:, :1], ["a"], list("abcdefgh"))
        rejected += found.permutation < 0.05
    assert rejected <= stats.binom(150, 0.05).ppf(0.999)
