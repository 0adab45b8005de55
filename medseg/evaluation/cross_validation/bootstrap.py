"""Confidence intervals of means over cases by resampling subjects: the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
_COVERED = (2.5, 97.5)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN on both sides if nothing was measured.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float

    @classmethod
    def from_draws(cls, draws: Array) -> Interval:
        """Return the interval of resampled values.

        Args:
            draws: Values `(n,)` of one statistic; those that are not finite are left out.

        Returns:
            The percentiles 2.5 and 97.5; NaN if no value is finite.
        """
        known = draws[np.isfinite(draws)]
        if known.size == 0:
            return cls(float("nan"), float("nan"))
        low, high = np.percentile(known, _COVERED)
        return cls(float(low), float(high))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"


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
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    known = np.isfinite(values)
    sums, counts = (np.zeros((len(names), values.shape[1])) for _ in range(2))
    np.add.at(sums, owner, np.where(known, values, 0.0))
    np.add.at(counts, owner, known)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    weights = times.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ sums) / (weights @ counts))


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
