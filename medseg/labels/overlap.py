"""Overlap of a predicted and a reference region, from numbers of voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dice_from_counts(shared: ArrayLike, predicted: ArrayLike, expected: ArrayLike) -> NDArray[np.float64]:
    """Return the Dice similarity coefficient 2·|P∩R| / (|P| + |R|) (Dice 1945).

    Args:
        shared: Voxels in both regions, a number or an array of any shape.
        predicted: Voxels of the prediction, of the same shape.
        expected: Voxels of the reference, of the same shape.

    Returns:
        Dice, 0 to 1, as an array of that shape; NaN where both regions are empty.

    Examples:
        >>> dice_from_counts([3, 0, 0], [4, 2, 0], [5, 0, 0])
        array([0.66666667, 0.        ,        nan])
    """
    overlap = 2 * np.asarray(shared, dtype=np.float64)
    total = np.asarray(predicted, dtype=np.float64) + np.asarray(expected, dtype=np.float64)
    return np.asarray(np.divide(overlap, total, out=np.full(np.shape(total), np.nan), where=total > 0))
