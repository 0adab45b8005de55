"""A lazy label map on the network's grid, computed some slices at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.volumes.resampling import AxisMap, axis_matrix, nearest_index, resample_labels

_PLANES = 8  # slices computed at a time, because shares of labels are held in double precision
_PIECES = 8  # at least this many pieces make up a label map, so that short ones need little memory, too


class LabelSlices:
    """Resampled slices of a label map across its last axis.

    Results equal `medseg.volumes.resampling.resample_labels` of the whole label map.

    Args:
        data: Integer labels `(X, Y, Z)` of the file, reoriented and cropped; a view is sufficient.
        maps: Positions of the target voxels, one `AxisMap` per axis.
        orders: Interpolation order per axis, 0 or 1.
    """

    def __init__(self, data: NDArray[Any], maps: Sequence[AxisMap], orders: Sequence[int]) -> None:
        self._data = data
        self._maps = maps
        self._orders = orders
        self._smooth = orders[2] > 0 and not maps[2].is_selection

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of target slices, then the two axes of a slice: `(Z, X, Y)`."""
        x, y, z = (m.n_out for m in self._maps)
        return z, x, y

    def slices(self, first: int, last: int) -> NDArray[Any]:
        """Return the resampled slices from `first` to `last` (excluded), `(last - first, X, Y)`."""
        result = np.empty((last - first, *self.shape[1:]), self._data.dtype)
        self._fill(np.moveaxis(result, 0, -1), first, last)
        return result

    def whole(self) -> NDArray[Any]:
        """Return the whole label map `(X, Y, Z)`, in C order."""
        result = np.empty([m.n_out for m in self._maps], self._data.dtype)
        self._fill(result, 0, result.shape[-1])
        return result

    def _fill(self, target: NDArray[Any], first: int, last: int) -> None:
        step = max(1, min(_PLANES, self.shape[0] // _PIECES))
        for low in range(first, last, step):
            high = min(low + step, last)
            target[..., low - first : high - first] = self._piece(low, high)

    def _piece(self, first: int, last: int) -> NDArray[Any]:
        """Return slices `(X, Y, last - first)`, computed from the source slices that they need."""
        along = self._maps[2]
        if not self._smooth:
            index = nearest_index(along)[first:last]
            own = AxisMap.resize(len(index), len(index))
            return resample_labels(self._data[..., index], [*self._maps[:2], own], self._orders)
        needed = np.flatnonzero(axis_matrix(along, 1)[first:last].any(axis=0))
        low, high = int(needed[0]), int(needed[-1]) + 1
        own = AxisMap(high - low, last - first, along.scale, along.offset + along.scale * first - low)
        return resample_labels(self._data[..., low:high], [*self._maps[:2], own], self._orders)
