"""A lazy prepared image: slices are computed when they are requested, so that no copy of the image is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.preprocessing.normalize import Scale
from medseg.volumes.resampling import AxisMap, axis_matrix, nearest_index

_PLANES = 16  # slices prepared at a time
_COLUMNS = 128  # columns of a slice prepared at a time
_NEGLIGIBLE = (
    1e-10  # smaller weights of a cubic spline are left out; weights fall by a factor of 3.7 per voxel
)

Float32 = NDArray[np.float32]


@dataclass
class _Tile:
    """A range of columns of all slices.

    Attributes:
        target: Columns of the target.
        source: Columns of the source that they need.
        weights: Matrix that interpolates the target columns; None if columns are selected.
        picks: Index of the source column of each target column; None if all are selected once.
        cached: Index of the first source slice that is cached, and the cached slices; None if there are none.
    """

    target: slice
    source: slice
    weights: NDArray[np.float64] | None = None
    picks: NDArray[np.int64] | None = None
    cached: tuple[int, Float32] | None = field(default=None, repr=False)


class PreparedSlices:
    """Normalised and resampled slices of an image, across its last axis.

    Results equal `medseg.volumes.resampling.resample` of the normalised image up to rounding of float32. They are
    computed in tiles of columns, so that a column is the same whether all columns are requested or only some.

    Args:
        data: `(C, X, Y, Z)` of the file, reoriented and cropped; a view is sufficient.
        scales: Normalisation of each channel, with the mask `(X, Y, Z)` that it needs.
        maps: Positions of the target voxels, one `AxisMap` per axis.
        orders: Spline order per axis, 0 or 3.
    """

    def __init__(
        self,
        data: NDArray[Any],
        scales: Sequence[tuple[Scale, NDArray[np.bool_] | None]],
        maps: Sequence[AxisMap],
        orders: Sequence[int],
    ) -> None:
        self._data = data
        self._scales = scales
        self._maps = maps
        self._smooth = [
            axis_matrix(m, order) if order > 0 and not m.is_selection else None
            for m, order in zip(maps, orders, strict=True)
        ]
        self._selects = [
            None if smooth is not None or m.is_identity else nearest_index(m)
            for m, smooth in zip(maps, self._smooth, strict=True)
        ]
        self._is_cubic = any(smooth is not None for smooth in self._smooth)
        self._kept_axes = tuple(axis for axis, order in enumerate(orders) if order == 0)
        self._tiles = [self._tile(start) for start in range(0, maps[0].n_out, _COLUMNS)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the target: channels, slices, then the two axes of a slice, `(C, Z, X, Y)`."""
        x, y, z = (m.n_out for m in self._maps)
        return self._data.shape[0], z, x, y

    @property
    def masks(self) -> list[NDArray[np.bool_] | None]:
        """The voxels `(X, Y, Z)` of the source that the normalisation of each channel changes; None for all."""
        return [
            mask if scale.where == "mask" else channel != 0 if scale.where == "nonzero" else None
            for channel, (scale, mask) in zip(self._data, self._scales, strict=True)
        ]

    @property
    def lowest(self) -> list[float]:
        """The lowest normalised intensity of each channel."""
        return [float(low.min()) for low, _ in self._ranges]

    def slices(self, first: int, last: int, columns: slice | None = None) -> Float32:
        """Return target slices, `(C, last - first, X, Y)` float32.

        Ascending requests are fastest, because source slices that the next request needs again are kept.

        Args:
            first: First slice along the last axis of the target.
            last: End of the slices, excluded.
            columns: Range of its first axis, with start and stop; None for all columns.

        Returns:
            `(C, last - first, X, Y)` float32, X being the requested columns.
        """
        left, right = (0, self.shape[2]) if columns is None else (columns.start, columns.stop)
        result = np.empty((self.shape[0], last - first, right - left, self.shape[3]), np.float32)
        for tile in self._tiles:
            start, stop = max(left, tile.target.start), min(right, tile.target.stop)
            if start >= stop:
                continue
            seen = slice(start - tile.target.start, stop - tile.target.start)
            # In pieces, because one target slice may need many thin source slices.
            for low in range(first, last, _PLANES):
                high = min(low + _PLANES, last)
                piece = self._piece(tile, low, high)
                result[:, low - first : high - first, start - left : stop - left] = piece[:, :, seen]
        return result

    def _tile(self, start: int) -> _Tile:
        target = slice(start, min(start + _COLUMNS, self._maps[0].n_out))
        matrix, index = self._smooth[0], self._selects[0]
        if matrix is not None:
            source = _needed(matrix[target])
            return _Tile(target, source, weights=matrix[target, source])
        if index is None:
            return _Tile(target, target)
        picks = index[target]
        source = slice(int(picks.min()), int(picks.max()) + 1)
        return _Tile(target, source, picks=picks - source.start)

    def _piece(self, tile: _Tile, first: int, last: int) -> Float32:
        matrix = self._smooth[2]
        if matrix is None:
            index = self._selects[2]
            wanted = np.arange(first, last) if index is None else index[first:last]
            start = int(wanted.min())
            result = self._source_slices(tile, start, int(wanted.max()) + 1)
            if index is not None:
                result = result[:, wanted - start]
        else:
            needed = _needed(matrix[first:last])
            source = self._source_slices(tile, needed.start, needed.stop)
            result = _product(matrix[first:last, needed], source.reshape(*source.shape[:2], -1))
            result = result.reshape(source.shape[0], last - first, *source.shape[2:])
        return self._selected(tile, self._clipped(tile, result, slice(first, last)))

    def _source_slices(self, tile: _Tile, start: int, stop: int) -> Float32:
        """Return source slices `(C, stop - start, X, Y)`, normalised and interpolated along X and Y only.

        X holds the columns of the tile. An axis along which voxels are only selected stays unchanged. Slices that the
        previous call returned are reused.
        """
        held_from, held = tile.cached or (start, np.empty((self._data.shape[0], 0, 0, 0), np.float32))
        held_to = held_from + held.shape[1]
        if held_from <= start <= held_to and held.size:
            parts = [held[:, start - held_from :]]
        else:
            parts, held_to = [], start
        parts += [
            self._planes(tile, low, min(low + _PLANES, stop))
            for low in range(max(held_to, start), stop, _PLANES)
        ]
        slices = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        tile.cached = (start, slices) if self._smooth[2] is not None else None
        return slices[:, : stop - start]

    def _planes(self, tile: _Tile, start: int, stop: int) -> Float32:
        """Compute `_source_slices` that are not cached; axes along which voxels are only selected stay unchanged."""
        y = self._smooth[1]
        planes = []
        for values in self._normalised(start, stop, tile.source):
            plane = np.ascontiguousarray(np.moveaxis(values, -1, 0))  # (n, X, Y)
            if tile.weights is not None:
                plane = _product(tile.weights, plane)
            if y is not None:
                plane = np.swapaxes(_product(y, np.swapaxes(plane, 1, 2)), 1, 2)
            planes.append(plane)
        return np.stack(planes)

    def _normalised(self, start: int, stop: int, columns: slice = slice(None)) -> Iterator[Float32]:
        """Yield the source slices of each channel, `(X, Y, stop - start)`."""
        for channel, (scale, mask) in zip(self._data, self._scales, strict=True):
            part = None if mask is None else mask[columns, :, start:stop]
            yield scale.apply(channel[columns, :, start:stop], part)

    @cached_property
    def _ranges(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """The lowest and highest normalised value of each channel: overall, or per slice across a thick axis."""
        depth = self._data.shape[-1]
        axes = tuple(axis for axis in range(3) if axis not in self._kept_axes)
        lows: list[list[Float32]] = [[] for _ in self._scales]
        highs: list[list[Float32]] = [[] for _ in self._scales]
        for start in range(0, depth, _PLANES):
            for channel, values in enumerate(self._normalised(start, min(start + _PLANES, depth))):
                lows[channel].append(values.min(axis=axes, keepdims=True))
                highs[channel].append(values.max(axis=axes, keepdims=True))
        along_z = 2 in self._kept_axes
        return [
            (
                np.concatenate(low, axis=2) if along_z else np.minimum.reduce(low),
                np.concatenate(high, axis=2) if along_z else np.maximum.reduce(high),
            )
            for low, high in zip(lows, highs, strict=True)
        ]

    def _clipped(self, tile: _Tile, result: Float32, targets: slice) -> Float32:
        """Clip values that the spline overshot, `(C, n, X, Y)`; axes to select still have their source size."""
        if not self._is_cubic:
            return result
        for channel, (low, high) in zip(result, self._ranges, strict=True):
            # (X, Y, Z), with size 1 where the range is common: moved to (Z, X, Y), with Z on the target.
            limits = [np.moveaxis(limit, 2, 0) for limit in (low, high)]
            if 2 in self._kept_axes:
                index = self._selects[2]
                limits = [limit[targets if index is None else index[targets]] for limit in limits]
            if 0 in self._kept_axes:
                limits = [limit[:, tile.source] for limit in limits]
            np.clip(channel, *limits, out=channel)
        return result

    def _selected(self, tile: _Tile, result: Float32) -> Float32:
        for axis, index in ((2, tile.picks), (3, self._selects[1])):
            if index is not None:
                result = np.take(result, index, axis=axis)
        return result


def _needed(weights: NDArray[np.float64]) -> slice:
    """Return the range of columns of a matrix with non-negligible weights."""
    found = np.flatnonzero((np.abs(weights) > _NEGLIGIBLE).any(axis=0))
    return slice(int(found[0]), int(found[-1]) + 1)


def _product(matrix: NDArray[np.float64], stack: Float32) -> Float32:
    """Return the matrix times each matrix of a stack `(n, i, j)`; torch is used because NumPy has no fast path for it."""
    import torch

    found: Float32 = torch.matmul(
        torch.from_numpy(matrix.astype(np.float32)), torch.from_numpy(stack)
    ).numpy()
    return found
