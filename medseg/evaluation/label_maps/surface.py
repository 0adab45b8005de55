"""Distances between the surfaces of two masks, in mm.

The surface of a mask consists of its voxels that share a face with a voxel outside the mask; everything beyond the array
is outside. Distances are measured between voxel centres: they are 0 for equal masks, and one voxel spacing for a mask
that is shifted by one voxel.

Sources: Huttenlocher et al. 1993 (Hausdorff distance); Nikolov et al. 2021, arXiv:1809.04430 (surface Dice at a
tolerance); Maier-Hein et al. 2024, arXiv:2206.01653 (choice of metrics).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from medseg.errors import ConfigError, DataError
from medseg.volumes.boxes import bounding_box

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]
LEAF_SIZE = 32  # for a query of many points, larger leaves than SciPy's 10 are faster
SPACING_NOISE = 1e-6  # relative; a spacing derived from a float32 header is not exactly 0.7


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The distances (mm) of every surface voxel of each mask to the surface of the other.

    If one mask is empty, the distances from the other are infinite; if both are empty, there are none.

    Attributes:
        to_reference: Distances `(p,)` of the surface voxels of the prediction.
        to_prediction: Distances `(r,)` of the surface voxels of the reference.
    """

    to_reference: Distances
    to_prediction: Distances

    @property
    def _both(self) -> Distances:
        return np.concatenate([self.to_reference, self.to_prediction])

    def hausdorff(self, percentile: float = 95) -> float:
        """Return a percentile of the Hausdorff distance: the larger of the percentiles of both directions.

        Args:
            percentile: Percentile in [0, 100]; 100 gives the Hausdorff distance itself.

        Returns:
            Distance in mm; NaN if both masks are empty, infinite if one is.

        Raises:
            ConfigError: The percentile is not in [0, 100].
        """
        if not 0 <= percentile <= 100:
            raise ConfigError(f"percentile: found {percentile}, expected 0 to 100. Use 95.")
        if self._both.size == 0:
            return float("nan")
        if min(self.to_reference.size, self.to_prediction.size) == 0:
            return float("inf")
        return float(max(np.percentile(d, percentile) for d in (self.to_reference, self.to_prediction)))

    def average(self) -> float:
        """Return the mean distance (mm) over both surfaces (ASSD); NaN if both masks are empty, infinite if one is."""
        return float(self._both.mean()) if self._both.size else float("nan")

    def average_of_directions(self) -> float:
        """Return the mean (mm) of the mean distances of both directions (MASD); NaN if both masks are empty, infinite if one is."""
        if self._both.size == 0:
            return float("nan")
        if min(self.to_reference.size, self.to_prediction.size) == 0:
            return float("inf")
        return float((self.to_reference.mean() + self.to_prediction.mean()) / 2)

    def surface_dice(self, tolerance_mm: float) -> float:
        """Return the fraction of both surfaces within `tolerance_mm` of the other; NaN if both are empty, 0 if one is."""
        checked_tolerance(tolerance_mm)
        if self._both.size == 0:
            return float("nan")
        return float((self._both <= tolerance_mm * (1 + SPACING_NOISE)).mean())


def surface_distances(prediction: Mask, reference: Mask, spacing: ArrayLike) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks.

    Axes of length 1 are left out, so that a single slice is measured as a 2D image, whose surface is its outline.

    Args:
        prediction: Mask `(X, Y, Z)`, or with any other number of axes.
        reference: Mask of the same shape.
        spacing: Distance in mm between voxel centres along each axis; for axes that are not at right angles, the matrix
            with the step in mm from one voxel to the next along axis i as column i.

    Returns:
        The distances from each surface to the other.

    Raises:
        DataError: The shapes differ, or the spacing does not have one entry per axis.
    """
    masks, steps = without_single_axes(prediction, reference, spacing)
    box = bounding_box(masks[0] | masks[1])
    predicted, expected = (surface_voxels(mask[box]) for mask in masks)
    return SurfaceDistances(_directed(predicted, expected, steps), _directed(expected, predicted, steps))


def without_single_axes(
    prediction: Mask, reference: Mask, spacing: ArrayLike
) -> tuple[list[Mask], NDArray[np.float64]]:
    """Return two masks without their axes of length 1, and the steps in mm along the others.

    Args:
        prediction: A mask.
        reference: A mask of the same shape.
        spacing: As for `surface_distances`.

    Returns:
        The masks, with one axis at least, and a matrix with the steps as columns.

    Raises:
        DataError: The shapes differ, or the spacing does not have one entry per axis.
    """
    steps = np.asarray(spacing, dtype=np.float64)
    if prediction.shape != reference.shape or steps.shape[-1:] != (prediction.ndim,):
        raise DataError(
            f"surface distances: found masks of shapes {prediction.shape} and {reference.shape} and spacing "
            f"{steps.tolist()}, expected equal shapes and one spacing per axis. Give masks on the same grid."
        )
    axes = [axis for axis, size in enumerate(prediction.shape) if size > 1] or [0]
    flat = tuple(prediction.shape[axis] for axis in axes)
    steps = np.diag(steps[axes]) if steps.ndim == 1 else steps[:, axes]
    return [np.asarray(mask, dtype=bool).reshape(flat) for mask in (prediction, reference)], steps


def surface_voxels(mask: Mask) -> Mask:
    """Return the voxels of a mask, with any number of axes, that share a face with a voxel outside it."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        inner_rows, mask_rows = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        inner_rows[1:] &= mask_rows[:-1]
        inner_rows[:-1] &= mask_rows[1:]
        inner_rows[:1] = inner_rows[-1:] = False
    return mask & ~inner


def checked_tolerance(tolerance_mm: float) -> float:
    """Return the tolerance as a float; raise `ConfigError` unless it is finite and not negative."""
    if not np.isfinite(tolerance_mm) or tolerance_mm < 0:
        raise ConfigError(f"tolerance_mm: found {tolerance_mm}, expected 0 mm or more. Use 1, for example.")
    return float(tolerance_mm)


def _directed(source: Mask, target: Mask, steps: NDArray[np.float64]) -> Distances:
    """Return the distance of each voxel of one surface to another surface; only voxels that are not in both are searched."""
    count = int(source.sum())
    if not target.any():
        return np.full(count, np.inf)
    distances = np.zeros(count)
    unshared = np.argwhere(source & ~target) @ steps.T
    if len(unshared):
        tree = KDTree(np.argwhere(target) @ steps.T, leafsize=LEAF_SIZE)
        distances[: len(unshared)] = tree.query(unshared)[0]
    return distances
