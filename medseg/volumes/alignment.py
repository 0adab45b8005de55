"""Placing a volume on a grid that it is expected to share with another file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.volumes.grid import EQUAL_WITHIN_VOXELS, Grid
from medseg.volumes.plausible import format_dimensions
from medseg.volumes.volume import Volume


def align_to_grid(
    volume: Volume,
    grid: Grid,
    *,
    where: str | Path,
    grid_of: str | Path,
    fix: str,
    trust_array: bool = False,
) -> Volume:
    """Return the volume with its axes permuted and flipped to those of `grid`, and placed exactly on it.

    Nothing is interpolated. Differences of up to a twentieth of a voxel are rounding and are removed, so that they cannot
    decide on axis codes later.

    Args:
        volume: Volume in any orientation.
        grid: Grid that the volume must share.
        where: Start of the message: the file, and what it contains.
        grid_of: What `grid` belongs to, for the message.
        fix: Advice at the end of the message, without a period.
        trust_array: Whether a volume of the same shape on another grid is placed on `grid` as it is stored, because only
            its header is wrong.

    Returns:
        The same voxels on `grid`.

    Raises:
        DataError: A corner of the volume is more than a twentieth of a voxel from its counterpart, or the shapes differ.

    Examples:
        >>> grid = Grid.from_spacing((4, 4, 2))
        >>> flipped = Volume(np.zeros((1, 4, 4, 2)), grid).reoriented("LPS")
        >>> align_to_grid(flipped, grid, where="labels", grid_of="image", fix="Resample it").grid == grid
        True
    """
    aligned = volume.reoriented_like(grid)
    if aligned.grid.matches(grid):
        return replace(aligned, grid=grid)
    if trust_array and volume.grid.shape == grid.shape:
        return Volume(volume.data, grid, volume.kind)
    distance = aligned.grid.distance(grid)
    gap = f", corners are up to {distance:.3g} mm apart" if np.isfinite(distance) else ""
    raise DataError(
        f"{where}: not on the grid of {grid_of}: found {_description(volume.grid)}, expected {_description(grid)} "
        f"(within {EQUAL_WITHIN_VOXELS} voxels{gap}). {fix}."
    )


def _description(grid: Grid) -> str:
    shape, spacing = format_dimensions(grid.shape), format_dimensions(grid.spacing)
    first = ", ".join(f"{place:.6g}" for place in grid.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, {grid.axcodes}, first voxel at ({first}) mm"
