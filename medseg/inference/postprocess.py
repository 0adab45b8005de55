"""Corrections of finished label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def keep_largest_components(
    classes: NDArray[Any], wanted: Sequence[int], *, together: bool = False
) -> NDArray[Any]:
    """Set all but the largest connected component to background.

    Components touch by faces, edges or corners (26 neighbours); components tied for largest all stay.

    Args:
        classes: class indices `(X, Y, Z)`; not changed.
        wanted: classes to clean; others stay as they are.
        together: one component for the union of `wanted` instead of one per class.

    Returns:
        A cleaned copy.
    """
    result = classes.copy()
    groups = [list(wanted)] if together else [[value] for value in wanted]
    for group in groups:
        mask = np.isin(classes, group)
        components, count = ndimage.label(mask, structure=np.ones((3,) * classes.ndim))
        if count < 2:
            continue
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        result[mask & (sizes[components] < sizes.max())] = 0
    return result
