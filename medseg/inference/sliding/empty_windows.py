"""Which windows are empty, known from the slices of the image as they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Tile = tuple[slice, ...]


class EmptyWindows:
    """The largest intensities within each window, collected slice by slice on the host.

    A window is empty if no channel exceeds its limit. Neighbouring windows share most of their slices, so that maxima of
    slices are computed once and no window has to be fetched from the device that holds it.

    Args:
        limits: Intensity of each channel up to which a window is empty.
        sizes: Voxels along each axis of the padded image.
        shape: Voxels along each axis of the image.
        before: Voxels of padding in front of each axis.
        tiles: Boxes of the windows along all axes but the first, in the padded image.
    """

    def __init__(
        self,
        limits: Sequence[float],
        sizes: Sequence[int],
        shape: Sequence[int],
        before: Sequence[int],
        tiles: Sequence[Tile],
    ) -> None:
        self._limits = np.array(limits, np.float64)
        self._before = before
        # Padding consists of zeros, and every window contains some of it if an axis is shorter than the windows.
        self._padded = tuple(sizes[1:]) != tuple(shape[1:])
        self._number = {_key(tile): number for number, tile in enumerate(tiles)}
        self._tiles = list(tiles)
        self._maxima = np.zeros((len(limits), sizes[0], len(self._tiles)), np.float32)

    def add(self, first: int, slices: Tensor, columns: slice | None) -> None:
        """Add slices of the image.

        Args:
            first: Index of the first one.
            slices: Slices `(c, n, *rest)` on the CPU.
            columns: Part of the second axis that they hold; None for all.
        """
        origin = list(self._before[1:])
        if columns is not None:
            origin[0] += columns.start
        axes = tuple(range(2, slices.dim()))
        start = first + self._before[0]
        for number, tile in enumerate(self._tiles):
            part = slices[
                (
                    slice(None),
                    slice(None),
                    *(
                        slice(max(side.start - o, 0), max(side.stop - o, 0))
                        for side, o in zip(tile, origin, strict=True)
                    ),
                )
            ]
            largest = torch.amax(part, axes) if axes else part
            if self._padded:
                largest = largest.clamp(min=0)
            self._maxima[:, start : start + slices.shape[1], number] = largest.numpy()

    def is_empty(self, box: Tile) -> bool:
        """Return whether a window is empty, all of whose slices were added.

        Args:
            box: Box of the window in the padded image.

        Returns:
            True if no channel exceeds its limit.
        """
        maxima = self._maxima[:, box[0], self._number[_key(box[1:])]].max(axis=1).astype(np.float64)
        return bool((maxima <= self._limits).all())


def _key(tile: Sequence[slice]) -> tuple[tuple[int, int], ...]:
    return tuple((side.start, side.stop) for side in tile)
