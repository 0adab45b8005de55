"""Interpolation of images, label maps and instance ids at the voxels of a rotated patch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

EVEN_WITHIN = 1e-6
"""Rounding of shares that are equal in exact arithmetic."""


def sampling_grid(
    matrix: NDArray[np.float64],
    size: tuple[int, ...],
    box: tuple[int, ...],
    centre: NDArray[np.intp],
    device: torch.device | None = None,
) -> Tensor:
    """Compute the sampling grid for ``grid_sample``, whose coordinates run z, y, x in [-1, 1].

    Each coordinate is a sum of one term per axis. Unlike that of a matrix product, its rounding does not depend on the
    size of the patch, the number of threads or the device.

    Args:
        matrix: `(3, 3)` from patch offsets to source offsets, in voxels.
        size: Voxels of the patch per axis.
        box: Voxels per axis of the source box that the patch is read from.
        centre: Voxel `(3,)` of the box that comes to index ``size // 2``.
        device: Device of the grid; None for the processor.

    Returns:
        `(1, *size, 3)` float32.
    """
    grid = torch.empty((*size, 3), device=device)
    offsets = [torch.arange(n, dtype=torch.float64, device=device) - n // 2 for n in size]
    for axis in range(3):
        x, y, z = (float(2 / box[axis] * matrix[axis, source]) * offsets[source] for source in range(3))
        plane = x[:, None] + y + float((2 * centre[axis] + 1) / box[axis]) - 1
        torch.add(plane[..., None].float(), z.float(), out=grid[..., 2 - axis])
    return grid[None]


def interpolate_image(image: Tensor, grid: Tensor) -> Tensor:
    """Interpolate an image `(c, X, Y, Z)` linearly; outside is 0. Returns `(c, *size)`."""
    return functional.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]


def interpolate_labels(label: NDArray[np.generic], grid: Tensor) -> Tensor:
    """Interpolate a label map; the label with the largest share wins, and background, then the smaller label, wins a tie.

    The eight voxels around a sample hold at most eight labels, so the cost does not grow with the number of labels. The
    share of each label is that of ``grid_sample`` of its indicator, bit for bit.

    Args:
        label: `(1, X, Y, Z)` unsigned integers; outside is background.
        grid: `(1, *size, 3)` as returned by `sampling_grid`.

    Returns:
        `(1, *size)` int64.
    """
    return _Cells.at(label[0], grid).interpolated(_largest_label_share)


def interpolate_ids(ids: Tensor, grid: Tensor) -> Tensor:
    """Interpolate instance ids, one id at a time; the largest share wins, and the smaller id wins a tie.

    The eight voxels around a sample hold at most eight ids, so the cost does not grow with the number of ids.

    Args:
        ids: `(1, X, Y, Z)` int64; outside is 0.
        grid: `(1, *size, 3)` as returned by `sampling_grid`.

    Returns:
        `(1, *size)` int64.
    """
    return _Cells.at(ids[0].numpy(), grid).interpolated(_largest_id_share)


@dataclass(frozen=True)
class _Cells:
    """The 2 x 2 x 2 boxes of voxels around the samples of a grid.

    Attributes:
        corners: The eight values `(s,)` of each sample, in the order of ``itertools.product((0, 1), repeat=3)``.
        positions: Coordinate `(s,)` of each sample along each axis, in voxels.
        shape: Shape of the grid, s samples.
    """

    corners: list[Tensor]
    positions: list[Tensor]
    shape: torch.Size

    @classmethod
    def at(cls, values: NDArray[np.generic], grid: Tensor) -> _Cells:
        """Return the boxes of `(X, Y, Z)` integers at the samples of `grid`; outside is 0."""
        positions = [
            (((grid[0, ..., 2 - axis] + 1) * n - 1) / 2).flatten() for axis, n in enumerate(values.shape)
        ]
        padded = np.pad(values, 2)  # so that all eight voxels around each sample exist
        lows = torch.zeros(positions[0].shape, dtype=torch.int64)
        for position, n in zip(positions, values.shape, strict=True):
            lows = lows.mul_(n + 4).add_(position.floor().long().add_(2).clamp_(0, n + 2))
        flat, first = padded.reshape(-1), lows.numpy()
        kind = np.promote_types(values.dtype, np.int32)  # torch cannot compare unsigned 16-bit integers
        _, rows, columns = padded.shape
        corners = [
            torch.from_numpy(flat[(x * rows + y) * columns + z :].take(first).astype(kind, copy=False))
            for x, y, z in itertools.product((0, 1), repeat=3)
        ]
        return cls(corners, positions, grid.shape[1:4])

    def interpolated(self, winner: Callable[[list[Tensor], list[Tensor]], Tensor]) -> Tensor:
        """Return `(1, *size)` int64: `winner` of the eight values and three fractions where a box holds several values."""
        result = self.corners[0].long()
        mixed = torch.zeros(result.shape, dtype=torch.bool)
        for corner in self.corners[1:]:
            mixed |= corner != self.corners[0]
        chosen = mixed.nonzero()[:, 0]
        fractions = [part - part.floor() for part in (p[chosen] for p in self.positions)]
        result[chosen] = winner([corner[chosen] for corner in self.corners], fractions).long()
        return result.view(1, *self.shape)


def _largest_label_share(corners: list[Tensor], fractions: list[Tensor]) -> Tensor:
    """Return the label with the largest linear weight among eight voxels, for samples `(s,)`.

    Products and sums run in the order of ``grid_sample``, and background has the rest of the shares.
    """
    weights = []
    for steps in itertools.product((0, 1), repeat=3):
        x, y, z = (part if step else 1 - part for part, step in zip(fractions, steps, strict=True))
        weights.append(z * y * x)
    candidates = torch.stack(corners).sort(0)[0]
    shares = []
    for number, candidate in enumerate(candidates):
        counted = candidate > (candidates[number - 1] if number else 0)  # each foreground label once
        share = torch.zeros_like(weights[0])
        for corner, weight in zip(corners, weights, strict=True):
            share += weight * (corner == candidate)
        shares.append(share * counted)
    best = 1 - sum(shares[1:], start=shares[0])
    winner = torch.zeros_like(candidates[0])
    for candidate, share in zip(candidates, shares, strict=True):
        winner = torch.where(share > best, candidate, winner)
        best = torch.maximum(share, best)
    return winner


def _largest_id_share(corners: list[Tensor], fractions: list[Tensor]) -> Tensor:
    """Return the id with the largest linear weight among eight voxels, for samples `(s,)`."""
    weights = []
    for steps in itertools.product((0, 1), repeat=3):
        x, y, z = (part if step else 1 - part for part, step in zip(fractions, steps, strict=True))
        weights.append(x * y * z)
    # In ascending order, so that the smaller id wins a tie.
    sorted_ids, order = torch.stack(corners).sort(0)
    shares = torch.stack(weights).gather(0, order)
    winner, best = sorted_ids[0], torch.full(sorted_ids.shape[1:], -1.0)
    for candidate in sorted_ids:
        share = (shares * (sorted_ids == candidate)).sum(0)
        wins = share > best + EVEN_WITHIN
        winner, best = torch.where(wins, candidate, winner), torch.where(wins, share, best)
    return winner
