"""Checks of grids that a header describes but no scanner produces, before work begins that would not end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import DataError, warn_once
from medseg.volumes.grid import Grid

LARGEST_SPACING_MM = 100.0
LARGEST_SHEAR_DEGREES = 30.0
LARGEST_ANISOTROPY = (
    100.0  # longest by shortest edge of a voxel; slices of 10 mm with pixels of 0.3 mm have 33
)
_REPORTED_SHEAR = 1e-3  # cosine; 0.06 degrees
_MOST_VOXELS = 1 << 33
_MANY_VOXELS, _LARGEST_FACTOR = 1 << 26, 1000  # ten times finer along each axis
_LONG_AXIS = 16
_UNITS = "Check the units of the header: microns that are labelled as mm grow a thousand times"


def check_plausible(grid: Grid, where: str | Path) -> None:
    """Raise for voxel sizes and shears that no scanner produces; warn of a smaller shear and of extremely long voxels.

    Args:
        grid: Grid of an image.
        where: File or case, for messages.

    Raises:
        DataError: A voxel is longer than 100 mm, or two axes are more than 30 degrees from a right angle.
    """
    if max(grid.spacing) > LARGEST_SPACING_MM:
        raise DataError(
            f"{where}: voxel size: found {format_dimensions(grid.spacing)} mm, expected at most {LARGEST_SPACING_MM:g} mm. {_UNITS}."
        )
    degrees = math.degrees(math.asin(min(1.0, grid.shear)))
    if degrees > LARGEST_SHEAR_DEGREES:
        raise DataError(
            f"{where}: affine: found axes that are {degrees:.1f} degrees from a right angle, expected at most "
            f"{LARGEST_SHEAR_DEGREES:g}. Correct the header, or resample the image to an orthogonal grid."
        )
    if grid.shear > _REPORTED_SHEAR:
        warn_once(
            f"{where}: affine: found axes that are {degrees:.2f} degrees from a right angle, as after a tilted gantry; the shear is "
            "kept. Resample the image to an orthogonal grid if other programs must display it."
        )
    edges = [size for size, count in zip(grid.spacing, grid.shape, strict=True) if count > 1]
    if edges and max(edges) > LARGEST_ANISOTROPY * min(edges):
        warn_once(
            f"{where}: voxel size: found {format_dimensions(grid.spacing)} mm, expected edges that differ at most {LARGEST_ANISOTROPY:g} times. "
            "Check the header: an axis may be in other units."
        )


def check_resampling(
    shape: Sequence[int],
    spacing: Sequence[float],
    new_shape: Sequence[int],
    new_spacing: Sequence[float],
    where: str | Path,
) -> None:
    """Raise if resampling would create an absurd number of voxels, or lose an axis.

    Args:
        shape: Voxels of the image.
        spacing: Their spacing, mm.
        new_shape: Voxels after resampling.
        new_spacing: Their spacing, mm.
        where: File or case, for messages.

    Raises:
        DataError: There would be more than 2^33 voxels, more than 2^26 and a thousand times those of the image, or a long
            axis of a single voxel.
    """
    count, factor = math.prod(new_shape), math.prod(new_shape) / math.prod(shape)
    grows = count > _MOST_VOXELS or (count > _MANY_VOXELS and factor > _LARGEST_FACTOR)
    vanishes = any(n >= _LONG_AXIS and m == 1 for n, m in zip(shape, new_shape, strict=True))
    if grows or vanishes:
        raise DataError(
            f"{where}: voxel size: found {format_dimensions(spacing)} mm ({format_dimensions(shape)} voxels), expected one near the {format_dimensions(new_spacing)} mm of the model, "
            f"at which the image has {format_dimensions(new_shape)} voxels. {_UNITS}."
        )


def format_dimensions(values: Sequence[float]) -> str:
    """Return sizes along the axes as text, such as ``512x512x80``."""
    return "x".join(f"{value:.6g}" for value in values)
