"""Boundary IoU: intersection over union of the boundaries of two masks (Cheng et al. 2021, arXiv:2103.16562)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from medseg.evaluation.label_maps.mask_pair import MaskPair, overlap_over_union
from medseg.evaluation.label_maps.surface import SPACING_NOISE, Mask, surface_voxels

DIAGONAL_SHARE = 0.02
"""Width of the boundary by default, as a share of the image's diagonal (Cheng et al. 2021)."""


def boundary_iou(pair: MaskPair, width_mm: float | None) -> float:
    """Return the intersection over union of the voxels of both masks that are close to the outside.

    The boundary of a mask consists of its voxels whose centre is at most the width away from the centre of a voxel outside,
    and of its surface voxels however large they are. Everything beyond the image is outside.

    Args:
        pair: The masks.
        width_mm: Width of the boundary in mm; None for 2 % of the image's diagonal.

    Returns:
        From 0 to 1; NaN if both masks are empty, 0 if one is. It equals the IoU if the boundary is as wide as the masks.

    >>> square = np.zeros((1, 9, 9), bool)
    >>> square[:, 2:7, 2:7] = True
    >>> shifted = np.roll(square, 1, axis=1)
    >>> round(boundary_iou(MaskPair(shifted, square, np.ones(3), 1.0), 1.0), 2)
    0.33
    """
    width = DIAGONAL_SHARE * pair.diagonal_mm if width_mm is None else width_mm
    return overlap_over_union(
        *(_boundary(mask, pair.steps, width) for mask in (pair.prediction, pair.reference))
    )


def _boundary(mask: Mask, steps: np.ndarray, width_mm: float) -> Mask:
    axes = [axis for axis, size in enumerate(mask.shape) if size > 1] or [0]
    flat = np.pad(mask.reshape([mask.shape[axis] for axis in axes]), 1)
    if not flat.any():
        return mask
    largest = width_mm * (1 + SPACING_NOISE)
    if steps.ndim == 1:
        near = flat & (ndimage.distance_transform_edt(flat, sampling=steps[axes]) <= largest)
    else:
        tree = KDTree(np.argwhere(~flat) @ steps[:, axes].T)
        near = flat.copy()
        near[flat] = tree.query(np.argwhere(flat) @ steps[:, axes].T)[0] <= largest
    near |= surface_voxels(flat)
    return np.asarray(near[(slice(1, -1),) * flat.ndim].reshape(mask.shape))
