"""Orientations, positions of voxels and a small phantom, for tests of anything that has a grid."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.phantom import phantom_case
from medseg.volumes.grid import Grid, world_positions
from medseg.volumes.volume import Volume

ORIENTATIONS = tuple(
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
)
"""All 48 axis codes."""


def voxel_indices(grid: Grid) -> NDArray[np.int64]:
    """Return the indices of every voxel, `(X, Y, Z, 3)`."""
    return np.asarray(np.moveaxis(np.indices(grid.shape), 0, -1))


def voxel_positions(grid: Grid) -> NDArray[np.float64]:
    """Return the world position of every voxel, `(X, Y, Z, 3)`, mm."""
    return world_positions(grid.affine, voxel_indices(grid))


def small_phantom(shape: tuple[int, int, int] = (14, 12, 10)) -> Volume:
    """Return the CT image of a phantom with coarse voxels in RAS orientation."""
    return phantom_case(0, "ct", shape, (20.0, 22.0, 24.0), oblique=False)[0]
