"""Bounding boxes of masks, as tuples of slices.

A box holds one slice per axis and can be used as an index: ``mask[bounding_box(mask)]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[slice, ...]
_LARGEST_TABLE = 1 << 16


def bounding_box(mask: NDArray[Any], margin: int = 0) -> Box:
    """Return the smallest box that contains all non-zero elements of a mask.

    Args:
        mask: Array `(*spatial)`; every value except 0 counts as inside.
        margin: Number of elements by which the box is extended on both sides of each axis, as far as the array
            reaches.

    Returns:
        One slice per axis; empty slices if the mask is empty.

    Examples:
        >>> mask = np.zeros((5, 6), bool)
        >>> mask[2, 1:4] = True
        >>> bounding_box(mask)
        (slice(2, 3, None), slice(1, 4, None))
        >>> bounding_box(mask, margin=2)
        (slice(0, 5, None), slice(0, 6, None))
    """
    axes = range(mask.ndim)
    box = tuple(span(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
    return extended_box(box, mask.shape, margin)


def boxes_of_values(array: NDArray[Any]) -> dict[int, Box]:
    """Return the bounding box of every value that occurs in an integer array, in one pass over it.

    Args:
        array: Integers or booleans `(*spatial)`.

    Returns:
        Boxes by value, in ascending order of the values; 0 is a value like any other.

    Examples:
        >>> boxes_of_values(np.array([7, 7, 0, 9]))
        {0: (slice(2, 3, None),), 7: (slice(0, 2, None),), 9: (slice(3, 4, None),)}
    """
    from scipy import ndimage

    array = array.view(np.uint8) if array.dtype == np.bool_ else array
    values = np.unique(array)
    if not len(values):
        return {}
    if values[0] >= 0 and values[-1] < _LARGEST_TABLE:
        numbers = np.zeros(int(values[-1]) + 1, np.int32)
        numbers[values] = np.arange(1, len(values) + 1)
        numbered = numbers[array]
    else:
        numbered = np.searchsorted(values, array).astype(np.int32) + 1
    return dict(zip(values.tolist(), ndimage.find_objects(numbered), strict=True))


def bounding_box_of_channels(image: NDArray[Any]) -> Box:
    """Return the smallest box that contains every voxel that is non-zero in at least one channel.

    The image is read slice by slice along its last axis, so no copy of its size is created.

    Args:
        image: Array `(C, X, Y, Z)`.

    Returns:
        Three slices; the whole image if all voxels are 0.
    """
    found = [np.zeros(size, bool) for size in image.shape[1:]]
    for index in range(image.shape[-1]):
        plane = (image[..., index] != 0).any(axis=0)
        found[0] |= plane.any(axis=1)
        found[1] |= plane.any(axis=0)
        found[2][index] = plane.any()
    if not found[2].any():
        return tuple(slice(0, size) for size in image.shape[1:])
    return tuple(span(axis) for axis in found)


def union_of_boxes(boxes: Iterable[Box | None], shape: Sequence[int], margin: int = 0) -> Box:
    """Return the smallest box that contains all of the given boxes.

    Args:
        boxes: Boxes in an array of shape `shape`; None is skipped.
        shape: Shape of the array, which limits the margin.
        margin: Number of elements by which the result is extended on both sides of each axis.

    Returns:
        One slice per axis; empty slices if there are no boxes.
    """
    present = [box for box in boxes if box is not None]
    if not present:
        return tuple(slice(0, 0) for _ in shape)
    union = tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*present, strict=True)
    )
    return extended_box(union, shape, margin)


def extended_box(box: Box, shape: Sequence[int], margin: int) -> Box:
    """Return `box` extended by `margin` elements on both sides of each axis, but not beyond an array of `shape`.

    An empty box stays empty.
    """
    return tuple(
        slice(max(0, side.start - margin), min(size, side.stop + margin)) if side.stop > side.start else side
        for side, size in zip(box, shape, strict=True)
    )


def span(mask: ArrayLike) -> slice:
    """Return the slice from the first to the last true element of a one-dimensional mask; empty if there is none."""
    found = np.flatnonzero(mask)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
