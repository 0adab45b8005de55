"""Connected components of masks and label maps.

Everywhere in medseg, voxels that share a face, an edge or a corner are connected: 26 neighbours in three dimensions,
8 in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.volumes.boxes import union_of_boxes

KEEP_LARGEST_BYTES_PER_VOXEL = 8
"""Memory that `keep_largest_components` needs per voxel: a mask, a copy of up to 16 bits and the components."""


def connected_components(mask: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Assign a number to each connected component of a mask.

    Args:
        mask: Array `(*spatial)`; every value except 0 counts as inside.

    Returns:
        Numbers `(*spatial)` from 1 in array order, with 0 outside the mask, and the number of components.

    Examples:
        >>> components, count = connected_components(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]))
        >>> components
        array([[1, 0, 0],
               [0, 1, 0],
               [0, 0, 0],
               [2, 0, 0]], dtype=int32)
        >>> count
        2
    """
    from scipy import ndimage

    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return components, count


def components_of_classes(classes: NDArray[Any]) -> NDArray[Any]:
    """Assign a number to each connected component of every foreground class of a label map.

    Args:
        classes: Class indices `(*spatial)`; 0 is background.

    Returns:
        Numbers `(*spatial)` from 1 in array order, regardless of the class; 0 is background.
    """
    from skimage.measure import label  # numbers all classes in one pass

    numbered: NDArray[Any] = label(classes, background=0, connectivity=classes.ndim)
    return numbered


def component_sizes(components: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the number of voxels of each component.

    Args:
        components: Numbers `(*spatial)` from 0 to `count`, as `connected_components` returns them.
        count: Number of components.

    Returns:
        Sizes `(count + 1,)`; the first is 0, because it belongs to no component.
    """
    sizes = np.zeros(count + 1, np.int64)
    for part in components:  # NumPy counts in 64-bit copies, so count slice by slice
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    sizes[0] = 0
    return sizes


def keep_largest_components(
    classes: NDArray[Any], selected: Sequence[int], *, together: bool = False
) -> NDArray[Any]:
    """Set all but the largest connected component to background.

    If several components are equally large, all of them are kept.

    Args:
        classes: Class indices `(X, Y, Z)`; not modified.
        selected: Classes to clean; other classes are left unchanged.
        together: Keep one component of the union of `selected` instead of one per class.

    Returns:
        A cleaned copy of `classes`.

    Examples:
        >>> keep_largest_components(np.array([[1, 1, 0, 1, 0, 2]]), [1])
        array([[1, 1, 0, 0, 0, 2]])
    """
    from scipy import ndimage

    result = classes.copy()
    groups = [list(selected)] if together else [[value] for value in selected]
    # One pass finds the boxes of all classes, so that each is then searched in its own box.
    boxes = ndimage.find_objects(classes, max_label=max(selected, default=0))
    for group in groups:
        present = [boxes[value - 1] for value in group if boxes[value - 1] is not None]
        if not present:
            continue
        box = union_of_boxes(present, classes.shape)
        mask = _inside(classes[box], group)
        components, count = connected_components(mask)
        del mask
        if count < 2:
            continue
        sizes = component_sizes(components, count)
        removed = sizes < sizes.max()
        removed[0] = False
        for here, part in zip(result[box], components, strict=True):
            here[removed[part]] = 0
    return result


def remove_small_components(
    classes: NDArray[Any], group: Sequence[int], largest_removed: int
) -> NDArray[Any]:
    """Set small connected components of the union of some classes to background.

    Args:
        classes: Class indices `(X, Y, Z)`; not modified.
        group: Classes to clean; other classes are left unchanged.
        largest_removed: Voxels of the largest component that is removed.

    Returns:
        A cleaned copy of `classes`.

    Examples:
        >>> remove_small_components(np.array([[1, 1, 0, 1, 0, 2]]), [1], 1)
        array([[1, 1, 0, 0, 0, 2]])
    """
    result = classes.copy()
    components, count = connected_components(_inside(classes, list(group)))
    removed = component_sizes(components, count) <= largest_removed
    removed[0] = False
    for here, part in zip(result, components, strict=True):
        here[removed[part]] = 0
    return result


def _inside(classes: NDArray[Any], group: Sequence[int]) -> NDArray[np.bool_]:
    """Return the voxels of some classes."""
    if len(group) == 1:
        return np.asarray(classes == group[0])
    mask = np.empty(classes.shape, bool, order="F")
    for index in range(classes.shape[-1]):  # np.isin creates 64-bit copies, so work slice by slice
        mask[..., index] = np.isin(classes[..., index], group)
    return mask
