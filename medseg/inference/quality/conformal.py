"""Conformal quantiles: intervals that hold for any distribution, if new cases are like the calibration cases.

Vovk, Gammerman and Shafer 2005, *Algorithmic Learning in a Random World*; Angelopoulos and Bates 2021, *A Gentle Introduction
to Conformal Prediction*, arXiv:2107.07511.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

_ROUNDING = 1e-9  # 0.9 * 20 is 18.000000000000004 in some orders of multiplication


def conformal_quantile(scores: ArrayLike, coverage: float) -> float:
    """Return the value that the score of a new case does not exceed with a given probability.

    It is the score of rank ⌈(n + 1) · coverage⌉ among n calibration cases. If the new case is exchangeable with them, its
    score is at most this value with a probability of at least `coverage`, and of at most `coverage` + 1 / (n + 1) if no two
    scores are equal.

    Args:
        scores: Scores of the calibration cases; infinite ones are allowed.
        coverage: The probability, between 0 and 1.

    Returns:
        The value; infinity if there are too few cases for this coverage.

    Examples:
        >>> conformal_quantile(range(1, 20), 0.9)
        18.0
        >>> conformal_quantile(range(1, 9), 0.9)
        inf
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    rank = max(1, math.ceil((ordered.size + 1) * coverage - _ROUNDING))
    return float(ordered[rank - 1]) if rank <= ordered.size else math.inf


def conformal_interval(residuals: ArrayLike, coverage: float) -> tuple[float, float]:
    """Return the interval that holds the residual of a new case with a given probability.

    Each side is missed with at most half of the remaining probability, so that skewed residuals have an interval of different
    length on either side.

    Args:
        residuals: Residuals of the calibration cases; infinite ones are allowed.
        coverage: The probability, between 0 and 1.

    Returns:
        Lower and upper end; infinite on both sides if there are too few cases, which is fewer than 19 for 90 %.

    Examples:
        >>> conformal_interval(range(1, 20), 0.9)
        (1.0, 19.0)
        >>> conformal_interval(range(1, 40), 0.9)
        (2.0, 38.0)
    """
    values = np.asarray(list(residuals) if isinstance(residuals, range) else residuals, dtype=np.float64)
    each_side = 1 - (1 - coverage) / 2
    return -conformal_quantile(-values, each_side), conformal_quantile(values, each_side)


def least_cases(coverage: float, *, sides: int = 1) -> int:
    """Return the smallest number of calibration cases for which a quantile is finite.

    Args:
        coverage: The probability, between 0 and 1.
        sides: 2 for `conformal_interval`, 1 for `conformal_quantile`.

    Returns:
        The number of cases.

    Examples:
        >>> least_cases(0.9), least_cases(0.9, sides=2)
        (9, 19)
    """
    missed = (1 - coverage) / sides
    return math.ceil(1 / missed - _ROUNDING * 1e3) - 1
