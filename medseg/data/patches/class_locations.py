"""Class locations: voxels of each class of a prepared case, from which patches are centred on foreground."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.labels.label_sets import LabelSets

LOCATIONS_PER_CLASS = 10_000
_BLOCK = 1 << 22  # voxels that are sorted at a time, which limits the memory


class ClassLocations(Mapping[int, NDArray[np.int32]]):
    """The voxels `(N, 3)` of each class by its number, as views of a table.

    Nothing is copied or kept: a number is found by bisection, so of a memory-mapped table only the pages that are needed
    are read.

    Args:
        table: Rows `(number, x, y, z)`, sorted by number, as returned by `locations_table`.
    """

    def __init__(self, table: NDArray[np.int32]) -> None:
        self._table = table
        self._numbers = table[:, 0]

    def __getitem__(self, number: int) -> NDArray[np.int32]:
        first = bisect_left(self._numbers, number)
        last = bisect_right(self._numbers, number, lo=first)
        if first == last:
            raise KeyError(number)
        return self._table[first:last, 1:]

    def __iter__(self) -> Iterator[int]:
        first = 0
        while first < len(self._numbers):
            number = int(self._numbers[first])
            yield number
            first = bisect_right(self._numbers, number, lo=first)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def locations_table(label: NDArray[Any], label_sets: LabelSets | None = None) -> NDArray[np.int32]:
    """Return rows `(number, x, y, z)` for the foreground voxels of a label map, at most 10,000 random ones per class.

    The map is counted once and searched once, some slices at a time, whatever the number of classes.

    Args:
        label: Label map `(X, Y, Z)`.
        label_sets: Meaning of the values; None if each value is a class.

    Returns:
        `(N, 4)`, sorted by number and then by position. The numbers are the keys of `StoredCase.class_locations`: classes
        or, with `label_sets`, regions, and 0 for annotated voxels.
    """
    step = max(1, _BLOCK // max(1, label[0].size))
    slabs = range(0, len(label), step)
    counts = np.zeros(0, np.int64)
    for start in slabs:
        found = np.bincount(label[start : start + step].ravel(), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    groups = dict(_groups(np.flatnonzero(counts), label_sets))
    samples = {number: _Sample(number, int(counts[members].sum())) for number, members in groups.items()}
    for start in slabs:
        slab = np.ascontiguousarray(label[start : start + step]).ravel()
        order = np.argsort(slab, kind="stable")  # voxels by value, in ascending order
        found = np.bincount(slab, minlength=len(counts))
        ends = np.cumsum(found)
        for number, members in groups.items():
            if len(members) == 1:
                last = ends[members[0]]
                places = order[last - found[members[0]] : last]
            else:
                is_member = np.zeros(len(counts), bool)
                is_member[members] = True
                places = np.flatnonzero(is_member[slab])
            samples[number].take(places, start * label[0].size)
    rows = [
        np.column_stack([np.full(len(places), number), *np.unravel_index(places, label.shape)])
        for number, sample in samples.items()
        if len(places := sample.places)
    ]
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)


class _Sample:
    """A random sample of at most `LOCATIONS_PER_CLASS` of the voxels of a class, which arrive in blocks.

    Args:
        number: Number of the class, which is the random seed.
        total: Number of voxels of the class in all blocks together.
    """

    def __init__(self, number: int, total: int) -> None:
        self._chosen: NDArray[np.int64] | None = None
        if total > LOCATIONS_PER_CLASS:
            draw = np.random.default_rng(number)
            self._chosen = np.sort(draw.choice(total, LOCATIONS_PER_CLASS, replace=False))
        self._seen = 0
        self._taken: list[NDArray[np.int64]] = []

    def take(self, places: NDArray[np.int64], offset: int) -> None:
        """Add those of the next voxels that are in the sample; their flat indices are ``places + offset``."""
        if self._chosen is not None:
            low, high = np.searchsorted(self._chosen, (self._seen, self._seen + len(places)))
            chosen = self._chosen[low:high] - self._seen
        else:
            chosen = np.arange(len(places))
        self._taken.append(places[chosen] + offset)
        self._seen += len(places)

    @property
    def places(self) -> NDArray[np.int64]:
        """The flat indices of the sample, in ascending order."""
        return np.concatenate(self._taken) if self._taken else np.zeros(0, np.int64)


def _groups(present: NDArray[np.int64], label_sets: LabelSets | None) -> Iterator[tuple[int, list[int]]]:
    """Yield the numbers that are present, in ascending order, each with the label values that it includes."""
    if label_sets is None or label_sets.is_fully_annotated:
        yield from ((int(value), [int(value)]) for value in present if value)
        return
    if label_sets.labels.ignore is not None:
        annotated = [int(value) for value in present if value != len(label_sets.labels)]
        yield from [(0, annotated)] if annotated else []
    inside = label_sets.certain()
    for number in range(1, inside.shape[1] + 1):
        members = [int(value) for value in present if inside[value, number - 1]]
        if members:
            yield number, members
