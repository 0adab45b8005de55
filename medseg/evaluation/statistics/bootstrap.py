"""Confidence intervals of means over cases by resampling subjects: the expanded percentile bootstrap.

The percentile bootstrap (Efron 1979) covers the true mean too rarely if there are few subjects. Its percentiles are
therefore moved outwards so that they cover as often as an interval of Student's t would for a normal distribution (Hesterberg
2015, What Teachers Should Know About the Bootstrap). ``benchmarks/simulated_studies.py`` measures the coverage.

No interval that is computed from the values of a study can contain the effect of a failure that no subject of the study shows,
unless it is as wide for every study without failures. `unseen_failure_rate` says how frequent such failures can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
FEW_SUBJECTS = 40
"""Below this number of subjects, intervals of skewed measures cover the truth less often than they claim."""
UNSEEN_FAILURES_BELOW = 100
"""Below this number of subjects, failures in 3 % of all patients may be absent from a study."""
_MOST_WEIGHTS = 1 << 25  # numbers in memory at a time: those of 16,000 subjects in all draws
_OUTSIDE = 0.025  # on each side of a 95 % interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN on both sides if it is not known.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float

    @classmethod
    def from_draws(cls, draws: Array, subjects: int) -> Interval:
        """Return the interval of resampled values.

        Args:
            draws: Values `(n,)` of one statistic; those that are not finite are left out.
            subjects: Number of subjects that were resampled.

        Returns:
            The expanded percentiles; NaN if no value is finite, or if there is one subject only.
        """
        known = draws[np.isfinite(draws)]
        if known.size == 0 or subjects < 2:
            return cls(float("nan"), float("nan"))
        outside = _expanded(subjects)
        low, high = np.quantile(known, (outside, 1 - outside))
        return cls(float(low), float(high))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return "unknown" if math.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"


def _expanded(subjects: int) -> float:
    """Return the share of resamples to leave out on each side."""
    from scipy import stats

    wider = math.sqrt(subjects / (subjects - 1)) * stats.t.isf(_OUTSIDE, subjects - 1)
    return float(stats.norm.sf(wider))


def unseen_failure_rate(subjects: int) -> float:
    """Return the share of failing patients that a study without any failure does not exclude at 95 %.

    This is the upper end of the exact one-sided interval of a share of which no event was seen; it is close to 3 / `subjects`
    (the rule of three: Hanley and Lippman-Hand 1983, If Nothing Goes Wrong, Is Everything All Right?).

    Args:
        subjects: Number of subjects, at least 1.

    Returns:
        A share from 0 to 1.

    Examples:
        >>> [round(unseen_failure_rate(subjects), 3) for subjects in (10, 40, 200)]
        [0.259, 0.072, 0.015]
    """
    return float(1 - (2 * _OUTSIDE) ** (1 / subjects))


def resampled_weights(subjects: int, *, seed: int = 0, draws: int = DRAWS) -> Iterator[Array]:
    """Yield how often each subject is drawn in resamples of the subjects with replacement.

    Args:
        subjects: Number of subjects, at least 1.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Yields:
        `(n, subjects)`, as many resamples at a time as may be in memory.
    """
    generator, shares = np.random.default_rng(seed), np.full(subjects, 1 / subjects)
    together = max(1, _MOST_WEIGHTS // subjects)
    for start in range(0, draws, together):
        yield generator.multinomial(subjects, shares, min(together, draws - start)).astype(np.float64)


def resampled_means(values: Array, subjects: Sequence[str], *, seed: int = 0, draws: int = DRAWS) -> Array:
    """Return means over cases for many resamples of the subjects with replacement.

    All cases of a subject are resampled together, because they are correlated. Equal subjects and seeds give equal
    resamples, so that two methods can be compared in pairs.

    Args:
        values: `(cases, columns)`; values that are not finite are left out, as in the means of a table.
        subjects: Subject of each case.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Returns:
        `(draws, columns)`; NaN where a resample has no value of a column.
    """
    sums, counts = subject_sums(values, subjects)
    parts = []
    for weights in resampled_weights(len(sums), seed=seed, draws=draws):
        with np.errstate(invalid="ignore"):
            parts.append((weights @ sums) / (weights @ counts))
    return np.concatenate(parts)


def subject_sums(values: Array, subjects: Sequence[str]) -> tuple[Array, Array]:
    """Return the sums of the finite values of each subject, and their numbers.

    Args:
        values: Values `(cases, columns)`.
        subjects: Subject of each case.

    Returns:
        Sums and numbers `(subjects, columns)`, subjects in the order of their names.
    """
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    known = np.isfinite(values)
    sums, counts = (np.zeros((len(names), values.shape[1])) for _ in range(2))
    np.add.at(sums, owner, np.where(known, values, 0.0))
    np.add.at(counts, owner, known)
    return sums, counts


def mean_of_known(values: Array) -> Array:
    """Return the means `(n,)` of the finite values in each row of `(n, columns)`; NaN for a row without any.

    Args:
        values: The values.

    Returns:
        `(n,)`.
    """
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1))
