"""Random errors in the label map of a first stage, so that the second stage does not trust it blindly.

Out-of-fold label maps are better than those of new images. The changes are nnU-Net's (Isensee et al., Nature Methods
2021): labels are dilated, eroded, closed and opened by a ball, and connected components are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.settings import FirstStageAugmentation
from medseg.labels.components import component_sizes, connected_components
from medseg.volumes.boxes import bounding_box

Mask = NDArray[np.bool_]
_SATURATED = 255  # squared distances fit into a byte, which makes them fast


def perturb(classes: NDArray[Any], settings: FirstStageAugmentation, rng: np.random.Generator) -> None:
    """Change the class indices `(X, Y, Z)` of one patch in place.

    Args:
        classes: Class indices; 0 is background.
        settings: Probabilities and sizes.
        rng: Generator of the sample; the result depends on nothing else.
    """
    if rng.random() < settings.morphology_p:
        for label in _choose_labels(classes, settings.morphology_label_p, rng):
            change = _CHANGES[int(rng.integers(len(_CHANGES)))]
            radius = rng.uniform(*settings.radius)
            if (classes == label).any():  # another label may have grown over it
                _apply_morphology(classes, label, change, radius)
    if rng.random() < settings.remove_p:
        for label in _choose_labels(classes, settings.remove_label_p, rng):
            _remove_component(classes, label, settings.remove_below_fraction, rng)


def _choose_labels(classes: NDArray[Any], share: float, rng: np.random.Generator) -> list[int]:
    """Return a random selection of the labels that are present, in random order."""
    present = np.flatnonzero(np.bincount(classes.ravel())[1:]) + 1
    return [int(label) for label in rng.permutation(present) if rng.random() < share]


def dilated(mask: Mask, radius: float) -> Mask:
    """Return the voxels within `radius` (voxels, at most 15) of the mask."""
    return _squared_distance(mask, radius) <= radius * radius


def eroded(mask: Mask, radius: float) -> Mask:
    """Return the voxels farther than `radius` from every voxel outside the mask; beyond the array counts as inside."""
    return ~dilated(~mask, radius)


def closed(mask: Mask, radius: float) -> Mask:
    """Return the mask dilated, then eroded."""
    return eroded(dilated(mask, radius), radius)


def opened(mask: Mask, radius: float) -> Mask:
    """Return the mask eroded, then dilated."""
    return dilated(eroded(mask, radius), radius)


_CHANGES = (dilated, eroded, closed, opened)


def _apply_morphology(
    classes: NDArray[Any], label: int, change: Callable[[Mask, float], Mask], radius: float
) -> None:
    """Replace a label by its changed mask; only the box that it can reach is processed."""
    part = classes[bounding_box(classes == label, margin=int(radius) + 1)]
    before = part == label
    after = change(before, radius)
    part[before & ~after] = 0
    part[after] = label


def _squared_distance(mask: Mask, radius: float) -> NDArray[np.uint8]:
    """Return the squared distance of each voxel to the mask: exact up to `radius` (voxels), larger or 255 beyond.

    For one axis after another, this is the minimum over shifted parabolas (Felzenszwalb, Huttenlocher 2012). The few
    shifts within the radius take a fraction of the time of `scipy.ndimage.distance_transform_edt`, which has no limit.
    """
    reach = int(radius)
    squared = np.where(mask, np.uint8(0), np.uint8(_SATURATED))
    best, buffer = np.empty_like(squared), np.empty_like(squared)
    for axis in range(mask.ndim):
        np.copyto(best, squared)
        lines, nearest, further = (np.moveaxis(array, axis, 0) for array in (squared, best, buffer))
        for step in range(1, min(reach, len(lines) - 1) + 1):
            # Sums beyond 255 stay at 255.
            np.minimum(lines, np.uint8(_SATURATED - step * step), out=further)
            further += np.uint8(step * step)
            np.minimum(nearest[step:], further[:-step], out=nearest[step:])
            np.minimum(nearest[:-step], further[step:], out=nearest[:-step])
        squared, best = best, squared
    return squared


def _remove_component(classes: NDArray[Any], label: int, below: float, rng: np.random.Generator) -> None:
    """Set one connected component (26 neighbours) of a label to background, if one is small enough."""
    part = classes[bounding_box(classes == label)]
    components, count = connected_components(part == label)
    sizes = component_sizes(components, count)[1:]
    small = np.flatnonzero(sizes < below * classes.size) + 1
    if len(small):
        part[components == small[int(rng.integers(len(small)))]] = 0
