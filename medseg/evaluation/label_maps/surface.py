"""Distances between the surfaces of two masks, in mm.

The surface of a mask is the set of its voxels that touch the outside through a face; the outside of the
array counts as outside. Distances go from voxel centre to voxel centre, so two masks that are equal are 0
apart, and a mask shifted by one voxel is one spacing away.

Sources: Huttenlocher et al. 1993 (Hausdorff distance); Nikolov et al. 2021, arXiv:1809.04430 (surface Dice
at a tolerance); Maier-Hein et al. 2024, arXiv:2206.01653 (which to use when).
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
_LEAF_SIZE = 32  # one query of many points: larger leaves than SciPy's 10 are faster
_SPACING_NOISE = 1e-6  # relative; a spacing derived from a float32 header is not exactly 0.7


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances (mm) of every surface voxel of either mask to the surface of the other.

    With one mask empty the distances from the other are infinite; with both empty there are none.

    Attributes:
        to_reference: `(p,)`, one for each surface voxel of the prediction.
        to_prediction: `(r,)`, one for each surface voxel of the reference.
    """

    to_reference: Distances
    to_prediction: Distances

    @property
    def _both(self) -> Distances:
        return np.concatenate([self.to_reference, self.to_prediction])

    def hausdorff(self, percentile: float = 95) -> float:
        """The larger of the two directed percentiles, mm; 100 gives the Hausdorff distance itself.

        NaN if both masks are empty, infinite if one is.
        """
        if not 0 <= percentile <= 100:
            raise ConfigError(f"percentile: found {percentile}, expected 0 to 100. Use 95.")
        if self._both.size == 0:
            return float("nan")
        if min(self.to_reference.size, self.to_prediction.size) == 0:
            return float("inf")
        return float(max(np.percentile(d, percentile) for d in (self.to_reference, self.to_prediction)))

    def average(self) -> float:
        """Mean over the voxels of both surfaces, mm (ASSD). NaN if both are empty, infinite if one is."""
        return float(self._both.mean()) if self._both.size else float("nan")

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces within `tolerance_mm` of the other. NaN if both are empty, 0 if one is."""
        checked_tolerance(tolerance_mm)
        if self._both.size == 0:
            return float("nan")
        return float((self._both <= tolerance_mm * (1 + _SPACING_NOISE)).mean())


def surface_distances(prediction: Mask, reference: Mask, spacing: ArrayLike) -> SurfaceDistances:
    """Distances between the surfaces of two masks `(X, Y, Z)` (or of any number of axes).

    An axis of length 1 is left out, so one slice is measured as a 2-D image: its surface is its outline.

    Args:
        prediction: boolean mask.
        reference: boolean mask of the same shape.
        spacing: distance of voxel centres along each axis, mm; or, for axes that are not at right angles, the
            matrix whose column i is the step from one voxel to the next along axis i, mm.

    Raises:
        DataError: different shapes, or a spacing that does not fit them.
    """
    steps = np.asarray(spacing, dtype=np.float64)
    if prediction.shape != reference.shape or steps.shape[-1:] != (prediction.ndim,):
        raise DataError(
            f"surface distances: found masks of shapes {prediction.shape} and {reference.shape} and spacing "
            f"{steps.tolist()}, expected equal shapes and one spacing an axis. Give masks of one grid."
        )
    axes = [axis for axis, size in enumerate(prediction.shape) if size > 1] or [0]
    flat = tuple(prediction.shape[axis] for axis in axes)
    steps = np.diag(steps[axes]) if steps.ndim == 1 else steps[:, axes]
    masks = [np.asarray(mask, dtype=bool).reshape(flat) for mask in (prediction, reference)]
    box = bounding_box(masks[0] | masks[1])
    predicted, expected = (surface(mask[box]) for mask in masks)
    return SurfaceDistances(_directed(predicted, expected, steps), _directed(expected, predicted, steps))


def surface(mask: Mask) -> Mask:
    """The voxels of a mask of any number of axes that have a face neighbour outside it."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        inner_rows, mask_rows = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        inner_rows[1:] &= mask_rows[:-1]
        inner_rows[:-1] &= mask_rows[1:]
        inner_rows[:1] = inner_rows[-1:] = False
    return mask & ~inner


def checked_tolerance(tolerance_mm: float) -> float:
    """The tolerance as a float, or a `ConfigError` unless it is finite and not negative."""
    if not np.isfinite(tolerance_mm) or tolerance_mm < 0:
        raise ConfigError(f"tolerance_mm: found {tolerance_mm}, expected 0 or more mm. Use 1, say.")
    return float(tolerance_mm)


def _directed(source: Mask, target: Mask, steps: NDArray[np.float64]) -> Distances:
    """Distance of each voxel of surface `source` to surface `target`; shared voxels are 0 without a search."""
    count = int(source.sum())
    if not target.any():
        return np.full(count, np.inf)
    distances = np.zeros(count)
    apart = np.argwhere(source & ~target) @ steps.T
    if len(apart):
        tree = KDTree(np.argwhere(target) @ steps.T, leafsize=_LEAF_SIZE)
        distances[: len(apart)] = tree.query(apart)[0]
    return distances
