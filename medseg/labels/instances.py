"""Instances of one image: a mask, a class and a score each, in two or three dimensions.

Masks are kept cut to their boxes: a hundred nodules in a volume of 256³ voxels cost what they cover, not a
hundred volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medseg.errors import DataError
from medseg.labels.components import connected_components
from medseg.volumes.boxes import Box, bounding_box

Mask = NDArray[np.bool_]
_LARGEST_LOOKUP = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """Instances of one image. They may overlap; an instance map cannot, see `to_map`.

    Attributes:
        shape: sizes of the image, two or three.
        starts: first voxel `(m, d)` of each instance's box.
        masks: m masks, each of its box's size.
        classes: class index `(m,)` of each, from 1; 0 is background.
        scores: confidence `(m,)` of each; 1 for references.
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
                "for as many masks. Give one of each an instance."
            )
        if count and (not np.isfinite(self.scores).all() or self.classes.min() < 1):
            raise DataError(
                f"instances: found scores {self.scores.min():g} to {self.scores.max():g} and classes from "
                f"{self.classes.min()}, expected finite scores and classes from 1. Leave the background out."
            )
        ends = self.starts + np.array([mask.shape for mask in self.masks]).reshape(count, dims)
        if count and ((self.starts < 0).any() or (ends > np.array(self.shape)).any()):
            raise DataError(f"instances: found a box outside of the image {self.shape}. Cut it to the image.")

    @classmethod
    def empty(cls, shape: Sequence[int]) -> Instances:
        """No instance in an image of this shape."""
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
        """From masks that are already cut to boxes.

        Args:
            shape: of the image.
            starts: first voxel of each box, `(m, d)`.
            masks: one of each box's size.
            classes: `(m,)`; 1 each unless given.
            scores: `(m,)`; 1 each unless given.

        Raises:
            DataError: numbers that differ, scores that are not finite, a class below 1, a box outside.
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
        """From whole masks `(m, *spatial)`; see `of_crops`. A mask without a voxel stays, as an empty one."""
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
        """From an instance map, by rising id.

        Args:
            ids: whole numbers `(*spatial)`; 0 is background.
            classes: class index by id; 1 each unless given.
            scores: score by id; 1 each unless given.

        Raises:
            DataError: no whole numbers, a negative id, or an id that `classes` or `scores` do not hold.
        """
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
        """The connected parts of every class of a label map `(*spatial)`; voxels that share a corner connect."""
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
        """Voxels `(m,)` of each instance."""
        return np.array([np.count_nonzero(mask) for mask in self.masks], dtype=np.int64)

    @property
    def boxes(self) -> NDArray[np.intp]:
        """First voxel and the one after the last of each box, `(m, 2, d)`."""
        sizes = np.array([mask.shape for mask in self.masks], dtype=np.intp).reshape(self.starts.shape)
        return np.stack([self.starts, self.starts + sizes], axis=1)

    def box(self, index: int) -> Box:
        """Where instance `index` lies in the image."""
        start, mask = self.starts[index], self.masks[index]
        return tuple(slice(int(s), int(s) + n) for s, n in zip(start, mask.shape, strict=True))

    def select(self, chosen: ArrayLike) -> Instances:
        """The instances with these indices, or where this `(m,)` mask is true, in that order."""
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
        """Whole masks `(m, *spatial)`; as large as m images."""
        result = np.zeros((len(self), *self.shape), dtype=bool)
        for index, mask in enumerate(self.masks):
            result[index][self.box(index)] = mask
        return result

    def to_map(self) -> NDArray[np.int32]:
        """Instance map `(*spatial)`: id k + 1 for instance k; where they overlap, the higher score wins.

        Of equal scores the earlier instance wins. One that is covered whole leaves no voxel.
        """
        return self._painted(np.arange(1, len(self) + 1))

    def to_label_map(self) -> NDArray[np.int32]:
        """Class indices `(*spatial)`, overlaps as in `to_map`."""
        return self._painted(self.classes)

    def _painted(self, values: NDArray[Any]) -> NDArray[np.int32]:
        result = np.zeros(self.shape, dtype=np.int32)
        for index in np.argsort(-self.scores, kind="stable")[::-1]:
            result[self.box(int(index))][self.masks[index]] = values[index]
        return result

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        classes, counts = np.unique(self.classes, return_counts=True)
        told = ", ".join(f"{n} of class {c}" for c, n in zip(classes, counts, strict=True))
        return f"Instances({'x'.join(map(str, self.shape))}, {told or 'none'})"


def _numbered(ids: NDArray[Any], what: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """A map whose largest id is small, and the original id of each of its ids from 1."""
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    if ids.dtype.kind not in "iu" or (ids.size and int(ids.min()) < 0):
        raise DataError(
            f"{what}: found {ids.dtype} from {ids.min()}, expected whole numbers from 0. Convert it."
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
