"""The rule by which interpolated label maps are decided.

Each label's indicator is interpolated by itself, and a voxel gets the label with the largest share. If several labels
have the same share, the label of the nearest sample wins if it is among them, otherwise the smallest label (the rule of
nnU-Net's resampling). Shares are rounded first, so that values that are equal in exact arithmetic are equal here.

Random training patches use the same rule without the nearest sample (see `medseg.data.patches.patch_dataset`): under a
random rotation and scaling, shares are equal only by chance.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.volumes.boxes import Box

_DECIMALS_OF_DOUBLE = 9
_DECIMALS_OF_SINGLE = 5
_NEAREST_LEADS_BY = 1e-10  # less than rounding removes, so that it only decides between equal shares


class LargestShare:
    """A label map that is decided while the shares of its labels arrive one by one.

    Args:
        nearest: Label of the nearest sample at every voxel; its shape and type are those of the result.

    Attributes:
        labels: The label with the largest share so far.

    Examples:
        >>> decision = LargestShare(nearest=np.array([2, 1]))
        >>> decision.add(1, np.array([0.5, 0.6]))
        >>> decision.add(2, np.array([0.5, 0.4]))
        >>> decision.labels
        array([2, 1])
    """

    def __init__(self, nearest: NDArray[Any]) -> None:
        self.labels = np.zeros_like(nearest)
        self._nearest = nearest
        self._best = np.zeros(nearest.shape)

    def add(self, label: int, share: NDArray[Any], box: Box | EllipsisType = ...) -> None:
        """Take the share of a label into account; labels must arrive in ascending order.

        Args:
            label: The label.
            share: Interpolated indicator of the label, of the shape of the box.
            box: Part of the map that the share covers; outside of it the share is 0.
        """
        decimals = _DECIMALS_OF_SINGLE if share.dtype == np.float32 else _DECIMALS_OF_DOUBLE
        rounded = np.round(share.astype(np.float64, copy=False), decimals)
        rounded += _NEAREST_LEADS_BY * (self._nearest[box] == label)
        wins = rounded > self._best[box]
        self.labels[box][wins] = label
        self._best[box][wins] = rounded[wins]
