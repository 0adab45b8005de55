"""Instances of one image: a mask, a class and a score for each, in two or three dimensions.

Masks are cropped to their bounding boxes, so a hundred nodules in a volume of 256³ voxels do not need the memory of a
hundred volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import DataError
from medseg.labels.components import connected_components
from medseg.volumes.boxes import Box, bounding_box

Mask = NDArray[np.bool_]
_LARGEST_LOOKUP = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The instances of one image. They may overlap each other, unlike in an instance map.

    Attributes:
        shape: Shape of the image, with two or three axes.
        starts: First voxel `(m, d)` of the bounding box of each instance.
        masks: One mask per instance, of the shape of its bounding box.
        classes: Class index `(m,)` of each instance, from 1; 0 is background.
        scores: Confidence `(m,)` of each instance; 1 for references.

    Examples:
        >>> instances = Instances.from_map(np.array([[1, 1, 0], [0, 0, 7]]), classes={1: 2, 7: 1})
        >>> instances
        Instances(2x3, 1 of class 1, 1 of class 2)
        >>> instances.areas
        array([2, 1])
        >>> instances.to_map()
        array([[1, 1, 0],
               [0, 0, 2]], dtype=int32)
        >>> Instances.from_components(np.array([[1, 0, 1, 1]])).areas
        array([1, 2])
    """

    shape: tuple[int, ...]
    starts: NDArray[np.intp]
    masks: tuple[Mask, ...]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        count, dims = len(self.masks), len(self.shape)
        found = (self.starts.shape, self.classes.shape, self.scores.shape)
        if found != ((count, dims), (count,), (count,)):
            raise DataError(
                f"instances: found starts, classes and scores of shape {found}, expected {((count, dims), (count,), (count,))} "
                "for as many masks. Give one of each per instance."
            )
        if count and (not np.isfinite(self.scores).all() or self.classes.min() < 1):
            raise DataError(
                f"instances: found scores {self.scores.min():g} to {self.scores.max():g} and classes from "
                f"{self.classes.min()}, expected finite scores and classes from 1. Give finite "
                "scores, and leave out instances of the background."
            )
        ends = self.starts + np.array([mask.shape for mask in self.masks]).reshape(count, dims)
        if count and ((self.starts < 0).any() or (ends > np.array(self.shape)).any()):
            raise DataError(
                f"instances: found a mask that starts or ends outside of the image of shape {self.shape}, expected all masks "
                "inside. Correct the starts or crop the masks."
            )

    @classmethod
    def empty(cls, shape: Sequence[int]) -> Instances:
        """Return no instances for an image.

        Args:
            shape: Shape of the image.

        Returns:
            An object of length 0.
        """
        return cls.from_crops(shape, [], [])

    @classmethod
    def from_crops(
        cls,
        shape: Sequence[int],
        starts: Sequence[Sequence[int]] | NDArray[Any],
        masks: Sequence[Mask],
        classes: ArrayLike | None = None,
        scores: ArrayLike | None = None,
    ) -> Instances:
        """Create instances from masks that are already cropped to bounding boxes.

        Args:
            shape: Shape of the image.
            starts: First voxel `(m, d)` of each box.
            masks: One mask per instance, of the shape of its box.
            classes: Class index `(m,)` of each instance; 1 by default.
            scores: Score `(m,)` of each instance; 1 by default.

        Returns:
            The instances in the given order.

        Raises:
            DataError: The numbers of instances differ, a score is not finite, a class is below 1, or a box is outside
                the image.
        """
        count = len(masks)
        return cls(
            tuple(int(size) for size in shape),
            np.asarray(starts, dtype=np.intp).reshape(len(starts), len(shape)),
            tuple(np.asarray(mask, dtype=bool) for mask in masks),
            np.ones(count, np.int64) if classes is None else np.asarray(classes, dtype=np.int64),
            np.ones(count) if scores is None else np.asarray(scores, dtype=np.float64),
        )

    @classmethod
    def from_masks(
        cls, masks: NDArray[Any], classes: ArrayLike | None = None, scores: ArrayLike | None = None
    ) -> Instances:
        """Create instances from masks of the size of the image. An empty mask becomes an instance without voxels.

        Args:
            masks: Masks `(m, *spatial)`.
            classes: Class index `(m,)` of each instance; 1 by default.
            scores: Score `(m,)` of each instance; 1 by default.

        Returns:
            The instances in the given order.

        Raises:
            DataError: As for `from_crops`.
        """
        boxes = [bounding_box(mask) for mask in masks]
        starts = [[side.start for side in box] for box in boxes]
        crops = [np.array(mask[box], dtype=bool) for mask, box in zip(masks, boxes, strict=True)]
        return cls.from_crops(masks.shape[1:], starts, crops, classes, scores)

    @classmethod
    def from_map(
        cls,
        ids: NDArray[Any],
        classes: Mapping[int, int] | None = None,
        scores: Mapping[int, float] | None = None,
    ) -> Instances:
        """Create instances from an instance map, in ascending order of ids.

        Args:
            ids: Instance map `(*spatial)` of integers; 0 is background.
            classes: Class index by id; 1 by default.
            scores: Score by id; 1 by default.

        Returns:
            The instances in ascending order of ids.

        Raises:
            DataError: The map does not hold integers, an id is negative, or an id is missing in `classes` or `scores`.
        """
        from scipy import ndimage

        values, numbered = _numbered(ids, "instance map")
        found = [(i, box) for i, box in enumerate(ndimage.find_objects(numbered), start=1) if box is not None]
        boxes = [box for _, box in found]
        crops = [numbered[box] == number for number, box in found]
        values = values[[number - 1 for number, _ in found]]
        starts = [[side.start for side in box] for box in boxes]
        return cls.from_crops(
            ids.shape,
            starts,
            crops,
            _looked_up(classes, values, "class"),
            _looked_up(scores, values, "score"),
        )

    @classmethod
    def from_components(cls, label: NDArray[Any]) -> Instances:
        """Create one instance from each connected component of each class (see `medseg.labels.components`).

        Args:
            label: Label map `(*spatial)`; 0 is background.

        Returns:
            Instances ordered by class and, within a class, by the array order of their first voxel.

        Raises:
            DataError: The map does not hold integers, or a value is negative.
        """
        from scipy import ndimage

        values, numbered = _numbered(label, "label map")
        starts: list[list[int]] = []
        crops: list[Mask] = []
        classes: list[int] = []
        for index, box in enumerate(ndimage.find_objects(numbered)):
            if box is None:
                continue
            parts, _ = connected_components(numbered[box] == index + 1)
            for number, inner in enumerate(ndimage.find_objects(parts), start=1):
                starts.append([o.start + i.start for o, i in zip(box, inner, strict=True)])
                crops.append(parts[inner] == number)
                classes.append(int(values[index]))
        return cls.from_crops(label.shape, starts, crops, classes)

    @property
    def areas(self) -> NDArray[np.int64]:
        """The number of voxels `(m,)` of each instance."""
        return np.array([np.count_nonzero(mask) for mask in self.masks], dtype=np.int64)

    @property
    def boxes(self) -> NDArray[np.intp]:
        """The start and end of each bounding box `(m, 2, d)`; the end is exclusive."""
        sizes = np.array([mask.shape for mask in self.masks], dtype=np.intp).reshape(self.starts.shape)
        return np.stack([self.starts, self.starts + sizes], axis=1)

    def box(self, index: int) -> Box:
        """Return the bounding box of an instance, as slices of the image.

        Args:
            index: Index of the instance.

        Returns:
            One slice per axis.
        """
        start, mask = self.starts[index], self.masks[index]
        return tuple(slice(int(s), int(s) + n) for s, n in zip(start, mask.shape, strict=True))

    def select(self, chosen: ArrayLike) -> Instances:
        """Return some of the instances.

        Args:
            chosen: Indices of instances in the order of the result, or a boolean mask `(m,)`.

        Returns:
            The chosen instances of the same image.
        """
        index = np.asarray(chosen)
        indices = np.arange(len(self))[index if index.size else np.zeros(0, np.intp)]
        return Instances(
            self.shape,
            self.starts[indices],
            tuple(self.masks[int(i)] for i in indices),
            self.classes[indices],
            self.scores[indices],
        )

    def to_masks(self) -> Mask:
        """Return masks `(m, *spatial)` of the size of the image, which take the memory of m images."""
        result = np.zeros((len(self), *self.shape), dtype=bool)
        for index, mask in enumerate(self.masks):
            result[index][self.box(index)] = mask
        return result

    def to_map(self) -> NDArray[np.int32]:
        """Return an instance map `(*spatial)` with id k + 1 for instance k.

        Where instances overlap, the higher score wins, and the earlier instance if scores are equal. An instance that is
        completely covered has no voxels in the map.
        """
        return self.painted(np.arange(1, len(self) + 1))

    def to_label_map(self) -> NDArray[np.int32]:
        """Return class indices `(*spatial)`; overlaps are resolved as in `to_map`."""
        return self.painted(self.classes)

    def painted(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Return a map `(*spatial)` with a value for the voxels of each instance; overlaps are resolved as in `to_map`.

        Args:
            values: Whole numbers `(m,)`, one per instance.

        Returns:
            The map; 0 is background.
        """
        result = np.zeros(self.shape, dtype=np.int32)
        for index in np.argsort(-self.scores, kind="stable")[::-1]:
            result[self.box(int(index))][self.masks[index]] = values[index]
        return result

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        classes, counts = np.unique(self.classes, return_counts=True)
        listed = ", ".join(f"{n} of class {c}" for c, n in zip(classes, counts, strict=True))
        return f"Instances({'x'.join(map(str, self.shape))}, {listed or 'none'})"


def _numbered(ids: NDArray[Any], what: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the original ids, and a map with the ids 1, 2, … instead, which are small numbers."""
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    if ids.dtype.kind not in "iu" or (ids.size and int(ids.min()) < 0):
        lowest = f", the lowest {ids.min()}" if ids.size else ""
        raise DataError(
            f"{what}: found values of type {ids.dtype}{lowest}, expected integers from 0. Convert them; 0 is background."
        )
    largest = int(ids.max()) if ids.size else 0
    if largest < _LARGEST_LOOKUP:  # sorting a volume takes seconds
        return np.arange(1, largest + 1), ids.astype(np.int32, copy=False)
    values, index = np.unique(ids, return_inverse=True)
    background = int(values[0] == 0)
    return values[background:], (index.reshape(ids.shape) + 1 - background).astype(np.int32)


def _looked_up(table: Mapping[int, Any] | None, values: NDArray[Any], what: str) -> list[Any] | None:
    if table is None:
        return None
    missing = [int(value) for value in values if int(value) not in table]
    if missing:
        raise DataError(
            f"instance map: ids without a {what}: found {', '.join(map(str, missing[:5]))} ({len(missing)} of "
            f"{len(values)} ids), expected every id in the table. Add them to it."
        )
    return [table[int(value)] for value in values]
