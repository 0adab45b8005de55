"""How far a mean over cases might lie elsewhere with other subjects: the percentile bootstrap (Efron 1979)."""

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
    """A 95 % interval; NaN on both sides where nothing was measured."""

    low: float
    high: float

    @classmethod
    def from_draws(cls, draws: Array) -> Interval:
        """From the draws `(n,)` of one number; those that are not finite are passed over."""
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
    """Means over cases, again and again with subjects drawn with replacement.

    All cases of a subject come and go together, because they are alike. Equal subjects and seeds draw alike, so that
    two methods can be compared pair by pair.

    Args:
        values: `(cases, columns)`; those that are not finite are passed over, as in the means of a table.
        subjects: of each case.
        seed: of the draws.
        draws: how many.

    Returns:
        `(draws, columns)`; NaN where a draw holds no value of a column.
    """
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    known = np.isfinite(values)
    sums, counts = (np.zeros((len(names), values.shape[1])) for _ in range(2))
    np.add.at(sums, owner, np.where(known, values, 0.0))
    np.add.at(counts, owner, known)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    drawn = times.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray((drawn @ sums) / (drawn @ counts))


def mean_of_known(values: Array) -> Array:
    """Means `(n,)` along the rows of `(n, columns)` over what is finite; NaN for a row without."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1))
