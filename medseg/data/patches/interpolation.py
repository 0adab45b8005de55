"""Interpolation of images, label maps and instance ids at the voxels of a rotated patch."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_EVEN_WITHIN = 1e-6  # rounding of shares that are equal in exact arithmetic


def sampling_grid(
    matrix: NDArray[np.float64], size: tuple[int, ...], box: tuple[int, ...], centre: NDArray[np.intp]
) -> Tensor:
    """Compute the sampling grid for ``grid_sample``, whose coordinates run z, y, x in [-1, 1].

    Each coordinate is a sum of one term per axis. Unlike that of a matrix product, its rounding does not depend on the
    size of the patch or the number of threads.

    Args:
        matrix: `(3, 3)` from patch offsets to source offsets, in voxels.
        size: Voxels of the patch per axis.
        box: Voxels per axis of the source box that the patch is read from.
        centre: Voxel `(3,)` of the box that comes to index ``size // 2``.

    Returns:
        `(1, *size, 3)` float32.
    """
    grid = np.empty((*size, 3), dtype=np.float32)
    offsets = [np.arange(n) - n // 2 for n in size]
    for axis in range(3):
        x, y, z = (2 / box[axis] * matrix[axis, source] * offsets[source] for source in range(3))
        plane = x[:, None] + y + (2 * centre[axis] + 1) / box[axis] - 1
        np.add(plane[..., None].astype(np.float32), z.astype(np.float32), out=grid[..., 2 - axis])
    return torch.from_numpy(grid[None])


def interpolate_image(image: Tensor, grid: Tensor) -> Tensor:
    """Interpolate an image `(c, X, Y, Z)` linearly; outside is 0. Returns `(c, *size)`."""
    return functional.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]


def interpolate_labels(label: NDArray[np.generic], grid: Tensor) -> Tensor:
    """Interpolate a label map, one label at a time; the largest share wins, and background wins a tie.

    Args:
        label: `(1, X, Y, Z)` unsigned integers; outside is background.
        grid: `(1, *size, 3)` as returned by `sampling_grid`.

    Returns:
        `(1, *size)` int64.
    """
    counts = np.bincount(label.ravel())
    foreground = torch.from_numpy(np.flatnonzero(counts[1:]) + 1)
    if not len(foreground):
        return torch.zeros((1, *grid.shape[1:4]), dtype=torch.int64)
    # torch cannot compare unsigned 16-bit integers.
    indicators = torch.from_numpy(label.astype(np.int32)) == foreground.view(-1, 1, 1, 1)
    shares = interpolate_image(indicators.float(), grid)
    # The share of background is the rest, and it includes everything outside the case.
    best = 1 - shares.sum(0)
    result = torch.zeros(best.shape, dtype=torch.int64)
    for value, share in zip(
        foreground, shares, strict=True
    ):  # an argmax over the classes is ten times slower
        result = torch.where(share > best, value, result)
        best = torch.maximum(share, best)
    return result[None]


def interpolate_ids(ids: Tensor, grid: Tensor) -> Tensor:
    """Interpolate instance ids, one id at a time; the largest share wins, and the smaller id wins a tie.

    The eight voxels around a sample hold at most eight ids, so the cost does not grow with the number of ids.

    Args:
        ids: `(1, X, Y, Z)` int64; outside is 0.
        grid: `(1, *size, 3)` as returned by `sampling_grid`.

    Returns:
        `(1, *size)` int64.
    """
    padded = functional.pad(ids[0], (2,) * 6)  # so that all eight voxels around each sample exist
    positions = [((grid[0, ..., 2 - a] + 1) * n - 1) / 2 for a, n in enumerate(ids.shape[1:])]
    lows = [p.floor().long().add(2).clamp(0, n + 2) for p, n in zip(positions, ids.shape[1:], strict=True)]
    result = padded[tuple(lows)]
    mixed = ~_is_uniform(padded)[tuple(lows)]
    fractions = [p[mixed] - p[mixed].floor() for p in positions]
    result[mixed] = _largest_share(padded, [low[mixed] for low in lows], fractions)
    return result[None]


def _is_uniform(ids: Tensor) -> Tensor:
    """Return whether the 2 x 2 x 2 box starting at each voxel holds a single id, `(X - 1, Y - 1, Z - 1)`."""
    same = ids[:-1] == ids[1:]
    same = same[:, :-1] & same[:, 1:] & (ids[:-1, :-1] == ids[:-1, 1:])
    return same[..., :-1] & same[..., 1:] & (ids[:-1, :-1, :-1] == ids[:-1, :-1, 1:])


def _largest_share(ids: Tensor, lows: list[Tensor], fractions: list[Tensor]) -> Tensor:
    """Return the id with the largest linear weight in the 2 x 2 x 2 box at `lows`, for samples `(s,)`."""
    found, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        found.append(ids[tuple(low + step for low, step in zip(lows, corner, strict=True))])
        x, y, z = (part if step else 1 - part for part, step in zip(fractions, corner, strict=True))
        weights.append(x * y * z)
    # In ascending order, so that the smaller id wins a tie.
    corners, order = torch.stack(found).sort(0)
    shares = torch.stack(weights).gather(0, order)
    winner, best = corners[0], torch.full(corners.shape[1:], -1.0)
    for candidate in corners:
        share = (shares * (corners == candidate)).sum(0)
        wins = share > best + _EVEN_WITHIN
        winner, best = torch.where(wins, candidate, winner), torch.where(wins, share, best)
    return winner
