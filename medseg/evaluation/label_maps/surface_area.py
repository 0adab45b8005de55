"""Distances between surfaces, weighted by area: the surface Dice and Hausdorff distance of DeepMind's ``surface-distance``.

The surface passes between the voxels. Every corner point at which eight voxels meet, some inside and some outside the mask,
holds a piece of it, whose triangles are those of marching cubes (Lorensen and Cline 1987); in two dimensions, four voxels meet
and the pieces are lines. Distances are measured between corner points.

Sources: Nikolov et al. 2021, arXiv:1809.04430. Where the tolerance is below the voxel spacing, the figures differ from those
by voxels (`medseg.evaluation.label_maps.surface`), because a thin structure has as much surface as it has, not as many voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from medseg.evaluation.label_maps.surface import (
    LEAF_SIZE,
    SPACING_NOISE,
    Distances,
    Mask,
    checked_tolerance,
    without_single_axes,
)
from medseg.volumes.boxes import bounding_box

_HALF = 0.5


@dataclass(frozen=True, eq=False)
class AreaDistances:
    """The distances (mm) of the surface pieces of each mask to the surface of the other, with their areas.

    Attributes:
        to_reference: Distances `(p,)` of the pieces of the prediction.
        to_prediction: Distances `(r,)` of the pieces of the reference.
        predicted_areas: Areas `(p,)` in mm² (lengths in mm of a single slice).
        reference_areas: Areas `(r,)`.
    """

    to_reference: Distances
    to_prediction: Distances
    predicted_areas: NDArray[np.float64]
    reference_areas: NDArray[np.float64]

    def surface_dice(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces within a tolerance of the other.

        Args:
            tolerance_mm: Tolerance in mm.

        Returns:
            From 0 to 1; NaN if both masks are empty, 0 if one is.

        Raises:
            ConfigError: The tolerance is negative or not finite.
        """
        largest = checked_tolerance(tolerance_mm) * (1 + SPACING_NOISE)
        whole = self.predicted_areas.sum() + self.reference_areas.sum()
        if whole == 0:
            return float("nan")
        within = self.predicted_areas[self.to_reference <= largest].sum()
        return float((within + self.reference_areas[self.to_prediction <= largest].sum()) / whole)

    def hausdorff(self, percentile: float = 95) -> float:
        """Return the distance within which a percentage of each surface lies from the other, the larger of both directions.

        Args:
            percentile: Percentage of the area, in [0, 100].

        Returns:
            Distance in mm; NaN if both masks are empty, infinite if one is.
        """
        if not self.to_reference.size and not self.to_prediction.size:
            return float("nan")
        return max(
            _percentile(self.to_reference, self.predicted_areas, percentile),
            _percentile(self.to_prediction, self.reference_areas, percentile),
        )


def area_distances(prediction: Mask, reference: Mask, spacing: ArrayLike) -> AreaDistances:
    """Return the distances between the surfaces of two masks, with the areas of their pieces.

    Axes of length 1 are left out, so that the surface of a single slice is its outline.

    Args:
        prediction: Mask `(X, Y, Z)`, or with one or two axes.
        reference: Mask of the same shape.
        spacing: As for `medseg.evaluation.label_maps.surface.surface_distances`.

    Returns:
        The distances and areas.

    Raises:
        DataError: The shapes differ, or the spacing does not have one entry per axis.

    >>> cube = np.zeros((6, 6, 6), bool)
    >>> cube[2:4, 2:4, 2:4] = True
    >>> round(float(area_distances(cube, cube, (1, 1, 1)).predicted_areas.sum()), 2)
    16.22
    """
    masks, steps = without_single_axes(prediction, reference, spacing)
    box = bounding_box(masks[0] | masks[1])
    codes = [_codes(np.pad(mask[box], 1)) for mask in masks]
    areas = _areas(steps)
    surfaces = [(code != 0) & (code != len(areas) - 1) for code in codes]
    return AreaDistances(
        _distances_to(surfaces[0], surfaces[1], steps),
        _distances_to(surfaces[1], surfaces[0], steps),
        areas[codes[0][surfaces[0]]],
        areas[codes[1][surfaces[1]]],
    )


def _codes(mask: Mask) -> NDArray[np.uint8]:
    """Return, for each corner point, which of the voxels around it are inside, as the bits of a number."""
    codes = np.zeros([size - 1 for size in mask.shape], np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        near = mask[tuple(slice(c, c + size) for c, size in zip(corner, codes.shape, strict=True))]
        codes |= near.astype(np.uint8) << np.uint8(bit)
    return codes


def _distances_to(source: Mask, target: Mask, steps: NDArray[np.float64]) -> Distances:
    """Return the distance in mm from each point of surface `source`, in array order, to surface `target`."""
    if not target.any():
        return np.full(int(source.sum()), np.inf)
    distances = np.zeros(int(source.sum()))
    unshared = ~target[source]
    if unshared.any():
        tree = KDTree(np.argwhere(target) @ steps.T, leafsize=LEAF_SIZE)
        distances[unshared] = tree.query(np.argwhere(source)[unshared] @ steps.T)[0]
    return distances


def _percentile(distances: Distances, areas: NDArray[np.float64], percentile: float) -> float:
    if not distances.size:
        return float("inf")
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order]) / areas.sum()
    place = min(int(np.searchsorted(covered, percentile / 100)), len(order) - 1)
    return float(distances[order][place])


def _areas(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area of the surface by code, for voxels with these steps (columns, mm)."""
    dims = steps.shape[1]
    if dims == 1:
        return np.array([0.0, 1.0, 1.0, 0.0])  # the ends of a line
    if dims == 2:
        return np.array([np.linalg.norm(lines @ steps.T, axis=1).sum() for lines in _lines()])
    # An affine map multiplies area vectors by its cofactors.
    cofactors = np.linalg.det(steps) * np.linalg.inv(steps).T
    return np.array([np.linalg.norm(vectors @ cofactors.T, axis=1).sum() for vectors in _triangles()])


@cache
def _lines() -> list[NDArray[np.float64]]:
    """Return the lines `(n, 2)` that separate the inside of four pixels from the outside, by code."""
    found = []
    for code in range(16):
        inside = np.array([code >> bit & 1 for bit in range(4)], bool).reshape(2, 2)
        alone = inside if inside.sum() <= 2 else ~inside
        corners = np.argwhere(alone)
        if (
            len(corners) == 2 and (corners[0] == corners[1]).any()
        ):  # neighbours: one line along their common side
            lines = np.array([corners[1] - corners[0]], float)
        else:  # each corner is cut off by a diagonal from the middle of a side to the middle of the next
            lines = np.array([[_HALF, -_HALF if i == j else _HALF] for i, j in corners]).reshape(-1, 2)
        found.append(lines)
    return found


@cache
def _triangles() -> list[NDArray[np.float64]]:
    """Return the area vectors `(n, 3)` of the triangles between eight voxels, by code.

    A code and its complement have the same surface, as in the original algorithm: it is that of the one with fewer corners.
    """
    from skimage.measure import marching_cubes

    found = []
    for code in range(256):
        inside = np.array([code >> bit & 1 for bit in range(8)], bool).reshape(2, 2, 2)
        alone = inside if inside.sum() <= 4 else ~inside
        if not alone.any():
            found.append(np.zeros((0, 3)))
            continue
        points, faces, _, _ = marching_cubes(
            alone.astype(np.float32), _HALF, method="lorensen", allow_degenerate=False
        )
        corners = points[faces].astype(np.float64)
        found.append(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2)
    return found
