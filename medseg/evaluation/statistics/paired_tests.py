"""Tests whether two methods differ on the same cases: by subject, label by label.

The cases of a subject are averaged first, because they are correlated. The p values of the labels are corrected for their
number (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.statistics.bootstrap import Interval, resampled_means, subject_sums

RESAMPLES = 9999
_SAME = 1e-9  # differences below this are ties
_MOST_VALUES = 1 << 23  # in memory at a time: those of 800 subjects in all resamples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two methods in one measure over the subjects in which both have a value.

    Attributes:
        name: Name of the label.
        subjects: Number of subjects.
        mean: Mean over subjects of the first method minus the second.
        interval: 95 % bootstrap interval of the mean.
        wins: Subjects with a larger value of the first method.
        losses: Subjects with a smaller value of the first method.
        wilcoxon: p value of the signed-rank test (Wilcoxon 1945, with ties by Pratt 1959); 1 if all subjects tie, NaN without
            subjects.
        permutation: p value of the test that exchanges the methods within subjects, of the mean difference.
        holm: `permutation`, corrected for the number of labels.
        effect: Matched-pairs rank-biserial correlation (Kerby 2014), from -1 to 1: the share of the ranks that favours the
            first method minus the share that favours the second.
    """

    name: str
    subjects: int
    mean: float
    interval: Interval
    wins: int
    losses: int
    wilcoxon: float
    permutation: float
    holm: float
    effect: float


def paired_differences(
    first: Array, second: Array, names: Sequence[str], subjects: Sequence[str], *, seed: int = 0
) -> list[PairedDifference]:
    """Compare two methods, label by label.

    Args:
        first: Values `(cases, labels)` of one method; those that are not finite are left out.
        second: Values `(cases, labels)` of the other method.
        names: Names of the labels.
        subjects: Subject of each case.
        seed: Seed of the resampling.

    Returns:
        One difference per label.
    """
    differences = np.where(np.isfinite(first) & np.isfinite(second), first - second, np.nan)
    by_subject = _subject_means(differences, subjects)
    columns = [column[np.isfinite(column)] for column in by_subject.T]
    permuted = np.array([_permutation_p(column, seed) for column in columns])
    corrected = holm_correction(permuted)
    return [
        _difference(name, column, float(p), float(own), seed)
        for name, column, p, own in zip(names, columns, permuted, corrected, strict=True)
    ]


def holm_correction(p_values: Array) -> Array:
    """Return p values that are corrected for their number by the step-down rule of Holm (1979).

    Args:
        p_values: One p value per test; NaN for a test that could not be computed, which does not count.

    Returns:
        The corrected values, at most 1.

    Examples:
        >>> holm_correction(np.array([0.01, 0.04, 0.03])).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    corrected = np.full(p_values.shape, np.nan)
    order = [int(index) for index in np.argsort(p_values) if np.isfinite(p_values[index])]
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, float(p_values[index]) * (len(order) - place)))
        corrected[index] = largest
    return corrected


def _subject_means(values: Array, subjects: Sequence[str]) -> Array:
    """Return the mean `(subjects, labels)` of the finite values of each subject."""
    sums, counts = subject_sums(values, subjects)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts)


def _difference(
    name: str, column: Array, permutation: float, corrected: float, seed: int
) -> PairedDifference:
    if not column.size:
        nan = float("nan")
        return PairedDifference(name, 0, nan, Interval(nan, nan), 0, 0, nan, nan, nan, nan)
    rounded = np.where(np.abs(column) < _SAME, 0.0, column)
    draws = resampled_means(column[:, None], [str(i) for i in range(len(column))], seed=seed)[:, 0]
    return PairedDifference(
        name,
        len(column),
        float(column.mean()),
        Interval.from_draws(draws, len(column)),
        int((rounded > 0).sum()),
        int((rounded < 0).sum()),
        _wilcoxon_p(rounded),
        permutation,
        corrected,
        rank_biserial(rounded),
    )


def _wilcoxon_p(differences: Array) -> float:
    from scipy import stats

    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def _permutation_p(differences: Array, seed: int) -> float:
    """Return the p value of the mean under sign flips: exact if all of them can be computed, else from random ones."""
    from scipy import stats

    rounded = np.where(np.abs(differences) < _SAME, 0.0, differences)
    if not rounded.any():
        return 1.0 if rounded.size else float("nan")
    found = stats.permutation_test(
        (rounded,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _MOST_VALUES // len(rounded)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def rank_biserial(differences: Array) -> float:
    """Return the matched-pairs rank-biserial correlation of differences; 0 if all are zero, NaN without any.

    Args:
        differences: One difference per subject.

    Returns:
        From -1 (all negative) to 1 (all positive).

    Examples:
        >>> rank_biserial(np.array([0.3, 0.2, -0.1]))
        0.6666666666666666
    """
    from scipy import stats

    known = differences[differences != 0]
    if not known.size:
        return 0.0 if differences.size else float("nan")
    ranks = stats.rankdata(np.abs(known))
    return float((ranks * np.sign(known)).sum() / ranks.sum())
