"""Lesion-wise Dice and HD95 as the BraTS 2023 challenge defines them (Saluja et al. 2023, arXiv:2305.19369).

Figures of whole masks are dominated by the largest lesion. Here every lesion of the reference counts the same, and so does every
predicted component that belongs to none of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.evaluation.label_maps.mask_pair import MaskPair
from medseg.evaluation.label_maps.surface import Mask
from medseg.evaluation.label_maps.surface_area import area_distances
from medseg.labels.components import connected_components
from medseg.volumes.boxes import extended_box, union_of_boxes

PENALTY_MM = 374.0
"""Distance of a lesion that is missed or invented: the diagonal of the challenge's images."""


def lesion_wise(pair: MaskPair, dilation: int, min_mm3: float) -> tuple[float, float]:
    """Return the mean Dice and the mean HD95 of lesions.

    Reference components that touch after a dilation are one lesion. The predicted components that overlap the dilated lesion
    belong to it: its Dice and HD95 (by area, see `medseg.evaluation.label_maps.surface_area`) are those of all of them
    together. A lesion without any counts with Dice 0 and `PENALTY_MM`, and so does each predicted component that
    belongs to no lesion. Reference lesions up to a volume are not counted, but what is predicted there is not false.

    Args:
        pair: The masks.
        dilation: Iterations of the dilation by one voxel through faces and edges.
        min_mm3: Volume in mm³ up to which reference lesions are not counted.

    Returns:
        Mean Dice and mean HD95 in mm; NaN if there is nothing to count.

    >>> lesions = np.zeros((20, 9, 9), bool)
    >>> lesions[1:5, 1:5, 1:5] = lesions[14:18, 1:5, 1:5] = True
    >>> found = lesions.copy()
    >>> found[14:18] = False
    >>> lesion_wise(MaskPair(found, lesions, np.ones(3), 1.0), 3, 50.0)
    (0.5, 187.0)
    """
    lesions, count = _lesions(pair.reference, dilation)
    predicted, predictions = connected_components(pair.prediction)
    boxes = ndimage.find_objects(predicted)
    dice, distances, belonging = [], [], np.zeros(predictions + 1, bool)
    for number, own in enumerate(ndimage.find_objects(lesions, max_label=count), start=1):
        near = extended_box(own, lesions.shape, dilation)
        lesion = lesions[near] == number
        members = np.unique(predicted[near][_dilated(lesion, dilation)])
        members = members[members > 0]
        belonging[members] = True
        if np.count_nonzero(lesion) * pair.voxel_mm3 <= min_mm3:
            continue
        # The margin makes sure that only an axis of length 1 in the volume has length 1 in the box.
        box = union_of_boxes([own, *(boxes[member - 1] for member in members)], lesions.shape, margin=1)
        found, whole = np.isin(predicted[box], members), lesions[box] == number
        size = np.count_nonzero(found) + np.count_nonzero(whole)
        dice.append(2 * np.count_nonzero(found & whole) / size)
        distances.append(
            area_distances(found, whole, pair.steps).hausdorff(95) if members.size else PENALTY_MM
        )
    false = predictions - int(belonging.sum())
    counted = len(dice) + false
    if not counted:
        return float("nan"), float("nan")
    return float(sum(dice) / counted), float((sum(distances) + false * PENALTY_MM) / counted)


def _dilated(mask: Mask, iterations: int) -> Mask:
    if not iterations:
        return mask
    neighbours = ndimage.generate_binary_structure(mask.ndim, min(2, mask.ndim))
    return np.asarray(ndimage.binary_dilation(mask, neighbours, iterations))


def _lesions(reference: Mask, dilation: int) -> tuple[NDArray[np.int32], int]:
    """Return the number of its lesion for each voxel, and the number of lesions."""
    grown, count = connected_components(_dilated(np.pad(reference, dilation), dilation))
    inside = tuple(slice(dilation, dilation + size) for size in reference.shape)
    return np.where(reference, grown[inside], 0).astype(np.int32), count
