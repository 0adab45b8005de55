"""Closed contours of masks, and masks of closed contours, in pixel coordinates of one slice.

Contours run half-way between pixel centres inside and outside of the mask, so that filling them restores the mask exactly.
Holes are cut out by the keyhole technique of DICOM PS3.3, C.8.8.6.3: outer and inner contour become one closed contour, joined
by a channel of no width. Filling is by the even-odd rule over all contours of a slice, so that a hole may also be
a contour of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import find_contours

Points = NDArray[np.float64]
"""Corners of a closed contour `(N, 2)`; the last one is joined to the first, which is not repeated."""


def mask_contours(mask: NDArray[np.bool_]) -> list[Points]:
    """Return the contours of the islands of a mask, with their holes cut out.

    Args:
        mask: Pixels `(X, Y)`.

    Returns:
        One contour per island, in indices along both axes. Pixels that only share a corner are separate islands.

    Examples:
        >>> ring = np.ones((5, 5), bool)
        >>> ring[2, 2] = False
        >>> contours = mask_contours(ring)
        >>> len(contours), bool((contours_mask(contours, (5, 5)) == ring).all())
        (1, True)
    """
    occupied = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(occupied[0]):
        return []
    start = np.array([axis[0] for axis in occupied])
    box = mask[start[0] : occupied[0][-1] + 1, start[1] : occupied[1][-1] + 1]
    padded = np.pad(box, 1)
    components, _ = ndimage.label(padded)
    islands: dict[int, list[Points]] = defaultdict(list)
    for contour in find_contours(padded.astype(np.float32), 0.5):
        # A point is half-way between a pixel of the island and one outside of it.
        low, high = np.floor(contour[0]).astype(int), np.ceil(contour[0]).astype(int)
        component = int(max(components[tuple(low)], components[tuple(high)]))
        islands[component].append(_without_collinear(contour[:-1]) + start - 1.0)
    return [_keyhole(contours) for contours in islands.values()]


def contours_mask(contours: Sequence[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centres an odd number of contours enclose.

    Args:
        contours: Closed contours in indices along both axes.
        shape: Shape of the slice `(X, Y)`; what is outside is cut off.

    Returns:
        Mask `(X, Y)`.
    """
    crossings = np.zeros((shape[0], shape[1] + 1), np.int32)
    for contour in contours:
        ends = np.roll(contour, -1, axis=0)
        lower = np.where((contour[:, :1] <= ends[:, :1]), contour, ends)
        upper = np.where((contour[:, :1] <= ends[:, :1]), ends, contour)
        first = np.maximum(np.ceil(lower[:, 0]), 0).astype(np.int64)
        last = np.minimum(np.ceil(upper[:, 0]), shape[0]).astype(
            np.int64
        )  # the upper end belongs to the next edge
        counts = np.maximum(last - first, 0)
        edge = np.repeat(np.arange(len(contour)), counts)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        rise = upper[edge] - lower[edge]
        place = lower[edge, 1] + (row - lower[edge, 0]) * rise[:, 1] / rise[:, 0]
        column = np.clip(np.ceil(place), 0, shape[1]).astype(np.int64)
        np.add.at(crossings, (row, column), 1)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1)


def _without_collinear(contour: Points) -> Points:
    """Return a contour without the points on straight lines."""
    before, after = contour - np.roll(contour, 1, axis=0), np.roll(contour, -1, axis=0) - contour
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return contour[np.abs(turns) > 1e-9]


def _area(contour: Points) -> float:
    following = np.roll(contour, -1, axis=0)
    return abs(float((contour[:, 0] * following[:, 1] - contour[:, 1] * following[:, 0]).sum()))


def _keyhole(contours: Sequence[Points]) -> Points:
    """Return the outer contour of an island joined with its holes, each by a channel to a close corner of another contour.

    The channel of a hole starts at its first corner along the first axis and ends at a corner further back, so that
    channels form a tree with the outer contour as its root.
    """
    contours = sorted(contours, key=_area, reverse=True)
    holes = contours[1:]
    if not holes:
        return contours[0]
    sizes = np.array([len(contour) for contour in contours])
    starts = np.cumsum(sizes) - sizes
    points, owner = np.concatenate(contours), np.repeat(np.arange(len(contours)), sizes)
    tree = KDTree(points)
    channels: dict[int, list[int]] = defaultdict(
        list
    )  # first corners of holes by the corner at the other end
    firsts = starts[1:] + np.array([hole[:, 0].argmin() for hole in holes])
    for corner, end in zip(firsts.tolist(), _corners_further_back(firsts, points, owner, tree), strict=True):
        channels[end].append(corner)
    order: list[int] = []
    pending = [
        (corner, False) for corner in range(int(sizes[0]) - 1, -1, -1)
    ]  # and whether its channels were followed
    while pending:
        corner, followed = pending.pop()
        order.append(corner)
        if followed or corner not in channels:
            continue
        for child in channels[corner]:
            start, size = int(starts[owner[child]]), int(sizes[owner[child]])
            around = [start + (child - start + step) % size for step in range(size)]
            pending.append((corner, True))
            pending += [(child, True), *((one, False) for one in reversed(around))]
    return points[order]


def _corners_further_back(
    corners: NDArray[np.int64], points: Points, owner: NDArray[np.int64], tree: KDTree
) -> list[int]:
    """Return for each corner one of another contour that is close and has a smaller first coordinate."""
    found = np.full(len(corners), -1)
    for count in (min(32, len(points)), len(points)):
        left = np.flatnonzero(found < 0)
        for part in np.array_split(
            left, max(1, len(left) * count >> 22)
        ):  # a few million distances at a time
            own = corners[part, None]
            near = tree.query(points[corners[part]], k=count)[1].reshape(-1, count)
            back = (points[near, 0] < points[own, 0]) & (owner[near] != owner[own])
            place = back.argmax(axis=1)
            nearest = near[np.arange(len(part)), place]
            found[part] = np.where(back.any(axis=1), nearest, -1)
    return [int(corner) for corner in found]
