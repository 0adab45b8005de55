"""Orientations, and positions of voxels, for tests of anything that has a grid."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from medseg.volumes.grid import Grid, world_positions

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
