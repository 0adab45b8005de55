"""Separable interpolation of arrays, with one small matrix per axis.

Resampling a volume along its own axes is linear and separable, so each axis is one matrix product. The matrices are
SciPy's one-dimensional interpolators applied to unit vectors. The result equals
``scipy.ndimage.zoom(..., mode="nearest", grid_mode=True)`` and takes a fraction of its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.volumes.boxes import Box, boxes_of_values, span
from medseg.volumes.largest_share import LargestShare

Array = NDArray[Any]
ANISOTROPY_THRESHOLD = (
    3.0  # nnU-Net (Isensee et al. 2021, Nature Methods 18): thicker slices are interpolated separately
)
_SPACING_NOISE = 1e-5  # relative; spacings are norms of affine columns that files hold in single precision


@dataclass(frozen=True)
class AxisMap:
    """The positions of the target samples along one axis: target index i reads source position ``scale * i + offset``.

    Attributes:
        n_in: Number of source samples.
        n_out: Number of target samples.
        scale: Distance between target samples, in source samples.
        offset: Position of the first target sample, in source samples.

    Examples:
        >>> AxisMap.resize(4, 2)
        AxisMap(n_in=4, n_out=2, scale=2.0, offset=0.5)
    """

    n_in: int
    n_out: int
    scale: float
    offset: float

    @classmethod
    def resize(cls, n_in: int, n_out: int) -> AxisMap:
        """Return the map that keeps the field of view: outer borders of voxels are fixed, not their centres.

        Args:
            n_in: Number of source samples.
            n_out: Number of target samples.

        Returns:
            The map.
        """
        scale = n_in / n_out
        return cls(n_in, n_out, scale, 0.5 * scale - 0.5)

    @property
    def is_identity(self) -> bool:
        """Whether each target sample is the source sample with the same index."""
        return self.n_in == self.n_out and self.scale == 1 and self.offset == 0

    @property
    def is_selection(self) -> bool:
        """Whether every target sample is a source sample (or a replicated border)."""
        return float(self.scale).is_integer() and float(self.offset).is_integer()


def resample(array: Array, maps: Sequence[AxisMap], orders: Sequence[int]) -> Array:
    """Interpolate an image along its last ``len(maps)`` axes.

    Args:
        array: Image `(*leading, *spatial)` with finite values (a NaN spreads along its lines). The computation is in
            float32, or in float64 for float64 values.
        maps: One `AxisMap` per spatial axis. Samples outside the image repeat the border.
        orders: Spline order per axis: 0 nearest neighbour, 1 linear, 3 cubic.

    Returns:
        Floating-point array with the target sizes. Cubic results are clipped to the range of the values they were
        computed from, per leading index, and per slice if an axis uses nearest neighbour.
    """
    result = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    first = result.ndim - len(maps)
    smooth = [a for a, o in enumerate(orders) if o > 0 and not maps[a].is_selection]
    cubic = any(orders[a] > 1 for a in smooth)
    if cubic:
        axes = tuple(first + a for a, order in enumerate(orders) if order > 0)
        low, high = result.min(axis=axes, keepdims=True), result.max(axis=axes, keepdims=True)
    # Shrinking axes first keeps the intermediate arrays small.
    for axis in sorted(smooth, key=lambda a: maps[a].n_out / maps[a].n_in):
        result = _along_axis(result, first + axis, axis_matrix(maps[axis], orders[axis]))
    if cubic:
        result = np.clip(result, low, high)
    return _select(result, [a for a in range(len(maps)) if a not in smooth], maps)


def resample_labels(array: Array, maps: Sequence[AxisMap], orders: Sequence[int]) -> Array:
    """Interpolate a label map by the rule of `medseg.volumes.largest_share`.

    Args:
        array: Integer labels `(*leading, *spatial)`.
        maps: One `AxisMap` per spatial axis. Samples outside the map repeat the border.
        orders: Spline order per axis, 0 or 1; higher orders count as 1.

    Returns:
        Labels of the same type with the target sizes.
    """
    orders = [min(order, 1) for order in orders]
    nearest = _select(array, range(len(maps)), maps)
    if all(m.is_selection or o == 0 for m, o in zip(maps, orders, strict=True)):
        return nearest
    matrices = [axis_matrix(m, 0 if m.is_selection else o) for m, o in zip(maps, orders, strict=True)]
    decision = LargestShare(nearest)
    for label, source in boxes_of_values(array).items():
        box, share = _share(array[source] == label, source, matrices)
        decision.add(label, share, box)
    return decision.labels


def _share(
    mine: NDArray[np.bool_], source: Box, matrices: Sequence[NDArray[np.float64]]
) -> tuple[Box, Array]:
    """Return the target box that a label reaches, and its interpolated indicator in it.

    Only the bounding box of the label is computed, so a hundred organs take about as long as a few.

    Args:
        mine: Whether each voxel of the bounding box of the label has the label.
        source: This box.
        matrices: One matrix per spatial axis, see `axis_matrix`.
    """
    first = mine.ndim - len(matrices)
    target, parts = list(source[:first]), []
    for matrix, columns in zip(matrices, source[first:], strict=True):
        rows = span(matrix[:, columns].any(axis=1))
        target.append(rows)
        parts.append(matrix[rows, columns])
    share = mine.astype(np.float64)
    for axis in sorted(range(len(parts)), key=lambda a: parts[a].shape[0] / parts[a].shape[1]):
        share = _along_axis(share, first + axis, parts[axis])
    return tuple(target), share


def axis_orders(order: int, *spacings: Sequence[float]) -> tuple[int, ...]:
    """Return the spline order of each axis by nnU-Net's rule for thick slices.

    The first anisotropic spacing decides, in which the largest value exceeds three times the smallest. If it has a
    single largest axis, that axis is interpolated by nearest neighbour.

    Args:
        order: Spline order of all other axes.
        *spacings: Spacings, mm; usually those of the source and then of the target.

    Returns:
        One order per axis.

    Examples:
        >>> axis_orders(3, (0.8, 0.8, 5.0))
        (3, 3, 0)
        >>> axis_orders(3, (1.0, 1.0, 2.0))
        (3, 3, 3)
    """
    dims = len(spacings[0])
    for spacing in spacings:
        if max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD * (1 + _SPACING_NOISE):
            thick = [axis for axis in range(dims) if spacing[axis] >= max(spacing) * (1 - _SPACING_NOISE)]
            if len(thick) == 1:
                return tuple(0 if axis == thick[0] else order for axis in range(dims))
            break
    return (order,) * dims


@lru_cache(maxsize=64)
def axis_matrix(axis_map: AxisMap, order: int) -> NDArray[np.float64]:
    """Return the matrix `(n_out, n_in)` that interpolates one axis; borders are repeated.

    The matrix is shared between callers and therefore read-only.

    Args:
        axis_map: Positions of the target samples.
        order: Spline order, 0, 1 or 3.

    Returns:
        Read-only matrix `(n_out, n_in)`.
    """
    from scipy import ndimage

    unit = np.eye(axis_map.n_in)
    if order == 0:
        matrix = unit[nearest_index(axis_map)]
        matrix.flags.writeable = False
        return matrix
    columns = [
        ndimage.affine_transform(
            row,
            np.array([axis_map.scale]),
            offset=axis_map.offset,
            output_shape=(axis_map.n_out,),
            order=order,
            mode="nearest",
        )
        for row in unit
    ]
    matrix = np.stack(columns, axis=1)
    matrix.flags.writeable = False
    return matrix


def nearest_index(axis_map: AxisMap) -> NDArray[np.intp]:
    """Return the source sample nearest to each target sample, `(n_out,)`.

    In a tie the higher index is taken; borders are repeated.

    Args:
        axis_map: Positions of the target samples.

    Returns:
        Indices `(n_out,)`.
    """
    position = np.arange(axis_map.n_out) * axis_map.scale + axis_map.offset
    index = np.floor(np.round(position, 9) + 0.5).astype(np.intp)
    return np.clip(index, 0, axis_map.n_in - 1)


def _select(array: Array, axes: Iterable[int], maps: Sequence[AxisMap]) -> Array:
    first = array.ndim - len(maps)
    for axis in axes:
        if not maps[axis].is_identity:
            array = np.take(array, nearest_index(maps[axis]), axis=first + axis)
    return array


def _along_axis(array: Array, axis: int, matrix: NDArray[np.float64]) -> Array:
    moved = np.tensordot(matrix.astype(array.dtype), array, axes=(1, axis))
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))
