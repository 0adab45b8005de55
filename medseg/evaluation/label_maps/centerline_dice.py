"""clDice: agreement of tubular structures along their centre lines (Shit et al. 2021, arXiv:2003.07311)."""

from __future__ import annotations

import numpy as np

from medseg.evaluation.label_maps.mask_pair import MaskPair
from medseg.evaluation.label_maps.surface import Mask


def centerline_dice(pair: MaskPair) -> float:
    """Return the clDice: the harmonic mean of two shares of skeletons.

    Topology precision is the share of the prediction's skeleton inside the reference, topology sensitivity the share of the
    reference's skeleton inside the prediction. Skeletons are those of scikit-image: Lee et al. 1994 in three dimensions,
    Zhang and Suen 1984 in two.

    Args:
        pair: The masks.

    Returns:
        From 0 to 1; NaN if both masks are empty, 0 if one is.

    >>> vessel = np.zeros((9, 9, 9), bool)
    >>> vessel[1:8, 4, 4] = True
    >>> centerline_dice(MaskPair(vessel, vessel, np.ones(3), 1.0))
    1.0
    """
    if not pair.prediction.any() and not pair.reference.any():
        return float("nan")
    if not pair.prediction.any() or not pair.reference.any():
        return 0.0
    precision = _share_inside(pair.prediction, pair.reference)
    sensitivity = _share_inside(pair.reference, pair.prediction)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _share_inside(mask: Mask, other: Mask) -> float:
    line = skeleton(mask)
    return float(np.count_nonzero(line & other) / np.count_nonzero(line))


def skeleton(mask: Mask) -> Mask:
    """Return the centre lines of a mask that is not empty.

    Args:
        mask: The mask; an image with one slice is thinned in its plane.

    Returns:
        A mask of the same shape with at least one voxel.
    """
    from skimage.morphology import skeletonize

    flat = mask.squeeze()
    if flat.ndim < 2:
        return mask  # a line of voxels is its own skeleton
    # Thinning would treat the border of the crop as the border of the structure.
    thin = skeletonize(np.pad(flat, 1))[(slice(1, -1),) * flat.ndim]
    return np.asarray(thin).reshape(mask.shape) if thin.any() else mask
