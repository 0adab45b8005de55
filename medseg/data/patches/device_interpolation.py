"""Interpolation of maps on a CUDA device, without waiting for it: nothing is selected by its value."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from medseg.data.patches.interpolation import EVEN_WITHIN


def on_host(tensor: Tensor) -> bool:
    """Return whether a tensor is in the memory of the processor, where selecting voxels by value saves time."""
    return tensor.device.type == "cpu"


def interpolate_map(values: Tensor, grid: Tensor) -> Tensor:
    """Interpolate a map of labels or ids, one value at a time; the largest share wins, and the smallest value a tie.

    The result is that of `medseg.data.patches.interpolation`, except where shares differ by rounding.

    Args:
        values: `(1, X, Y, Z)` integers; outside is 0.
        grid: `(1, *size, 3)` as returned by `medseg.data.patches.interpolation.sampling_grid`.

    Returns:
        `(1, *size)` int64.
    """
    padded = functional.pad(values[0].int(), (2,) * 6)  # so that all eight voxels around each sample exist
    index, fractions = torch.zeros(grid.shape[1:4], dtype=torch.int64, device=grid.device), []
    for axis, n in enumerate(values.shape[1:]):
        position = ((grid[0, ..., 2 - axis] + 1) * n - 1) / 2
        low = position.floor()
        fractions.append(position - low)
        index = index * (n + 4) + (low + 2).clamp(0, n + 2).long()
    strides, flat = padded.stride(), padded.flatten()
    corners, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        corners.append(flat[index + sum(step * stride for step, stride in zip(corner, strides, strict=True))])
        x, y, z = (part if step else 1 - part for part, step in zip(fractions, corner, strict=True))
        weights.append(x * y * z)
    return _largest_share(corners, weights)[None].long()


def _largest_share(corners: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return the value with the largest sum of weights."""
    winner, best = corners[0], torch.full_like(weights[0], -1.0)
    for candidate in corners:
        share = torch.zeros_like(best)
        for value, weight in zip(corners, weights, strict=True):
            share = share + weight * (value == candidate)
        even = (share - best).abs() <= EVEN_WITHIN
        wins = torch.where(even, candidate < winner, share > best)
        winner, best = torch.where(wins, candidate, winner), torch.where(wins, share, best)
    return winner
