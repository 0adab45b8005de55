"""Instances from votes: each foreground voxel points to the centre of its instance.

A network predicts, for each voxel, the offset to the centre of its instance (Cheng et al. 2020, Panoptic-DeepLab,
arXiv:1911.10194). The voxels that the offsets point to are *votes*. Centres are the local maxima of the density of votes,
and a voxel belongs to the centre nearest to its vote, so that instances that touch each other stay separate.

`VoteDecoder` receives the slices of a volume block by block and holds only those that may still change. Every decision
waits until all slices that influence it are known, so the instances do not depend on how the volume is divided into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from medseg.errors import DataError
from medseg.labels.components import component_sizes, connected_components
from medseg.labels.instances import Instances, Mask

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]

_WEIGHTS = 15  # levels of the weight of a vote; whole numbers add up to the same sum in any order
_LENGTHS = 4  # levels of the length of an offset per voxel, for the same reason
_TRUNCATE = 3.0  # standard deviations after which the smoothing kernel ends


@dataclass(frozen=True)
class VoteSettings:
    """How votes become centres.

    Attributes:
        smoothing: Standard deviation of the Gaussian that smooths the density of votes, as a multiple of the mean length of the
            offsets in an instance of typical size.
        suppression: Distance within which only the densest centre counts, as a multiple of the mean length of the offsets
            that point to a centre. The latter grows with the instance.
        min_votes: Number of votes of weight 1 for the same place that make a centre.
        min_voxels: Smallest number of voxels of an instance.
    """

    smoothing: float = 0.4
    suppression: float = 1.0
    min_votes: float = 2.0
    min_voxels: int = 4


DEFAULT_VOTES = VoteSettings()


@dataclass(frozen=True)
class VotingSlices:
    """What a network predicts for consecutive slices.

    Attributes:
        classes: Class index `(s, *rest)` of each voxel; 0 is background.
        scores: Probability `(s, *rest)` of foreground.
        weights: Weight `(s, *rest)` of the vote of each voxel, clipped to 0…1.
        offsets: Offset `(d, s, *rest)` to the centre of the instance, in voxels.
    """

    classes: NDArray[np.integer[Any]]
    scores: Floats
    weights: Floats
    offsets: Floats


@dataclass(frozen=True)
class _Voters:
    """The foreground voxels of some slices, whose instances are not known yet.

    Attributes:
        first: The first of these slices.
        places: Index `(v, d)` of each voxel.
        votes: Place `(v, d)` that it points to, in voxels.
        classes: Class index `(v,)`.
        scores: Probability `(v,)` of foreground.
    """

    first: int
    places: NDArray[np.int32]
    votes: NDArray[np.float32]
    classes: NDArray[np.integer[Any]]
    scores: NDArray[np.float32]


class VoteDecoder:
    """Finds instances in slices that are given block by block.

    Args:
        shape: Shape of the image, with the axis across slices first.
        spacing: Voxel size in mm along the same axes.
        length: Mean length in mm of the offsets in an instance of typical size.
        reach: Number of slices that an offset may cross, beyond which it is cut; None for no limit.
        settings: How votes become centres.

    Examples:
        >>> ids = np.array([[1, 1, 2, 2, 2]])
        >>> offsets = np.array([[[0, 0, 0, 0, 0]], [[0, -1, 1, 0, -1]]], np.float32)
        >>> decoder = VoteDecoder((1, 5), (1, 1), length=0.6, settings=VoteSettings(min_votes=1, min_voxels=1))
        >>> decoder.add(VotingSlices(ids > 0, np.ones((1, 5)), np.ones((1, 5)), offsets))
        >>> decoder.finish().to_map()
        array([[1, 1, 2, 2, 2]], dtype=int32)
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        length: float,
        *,
        reach: int | None = None,
        settings: VoteSettings = DEFAULT_VOTES,
    ) -> None:
        self._shape = tuple(int(size) for size in shape)
        self._spacing = np.asarray(spacing, float)
        self._reach = self._shape[0] if reach is None else max(1, min(reach, self._shape[0]))
        self._settings = settings
        self._known = 0  # slices that were added
        self._density = _Density(self._shape, self._spacing, settings.smoothing * length)
        self._centres = _Centres(
            self._shape, self._spacing, settings.suppression, settings.min_votes * self._density.single
        )
        self._waiting: list[_Voters] = []
        self._open: dict[int, list[tuple[NDArray[Any], ...]]] = {}
        self._found: list[tuple[int, tuple[int, ...], Mask, int, float]] = []

    def add(self, slices: VotingSlices) -> None:
        """Receive the next slices.

        Args:
            slices: What the network predicts for them.

        Raises:
            DataError: The image has fewer slices, or slices of another shape.
        """
        count, *rest = slices.classes.shape
        if self._known + count > self._shape[0] or tuple(rest) != self._shape[1:]:
            raise DataError(
                f"slices: found {count} of shape {tuple(rest)} after {self._known}, expected {self._shape[0]} of shape "
                f"{self._shape[1:]} together. Give the slices of one image."
            )
        inside = slices.classes > 0
        places = np.argwhere(inside).astype(np.int32)
        places[:, 0] += self._known
        offsets = slices.offsets[:, inside].T.astype(np.float32)
        np.clip(offsets[:, 0], -self._reach, self._reach, out=offsets[:, 0])
        votes = np.clip(places.astype(np.float32) + offsets, 0, np.array(self._shape, np.float32) - 1)
        lengths = np.sqrt(((offsets * self._spacing) ** 2).sum(axis=1))
        self._density.add(votes, slices.weights[inside], lengths, self._known + count + self._reach)
        scores = slices.scores[inside].astype(np.float32)
        self._waiting.append(_Voters(self._known, places, votes, slices.classes[inside], scores))
        self._known += count
        complete = self._known == self._shape[0]
        self._advance(self._shape[0] if complete else self._known - self._reach)

    def finish(self) -> Instances:
        """Return the instances, after the last slice was added.

        Returns:
            Instances in the order of their centres.

        Raises:
            DataError: Slices are missing.
        """
        if self._known != self._shape[0]:
            raise DataError(
                f"slices: found {self._known}, expected {self._shape[0]}. Add all slices of the image."
            )
        self._close(None)
        found = sorted(self._found, key=lambda one: one[0])
        return Instances.from_crops(
            self._shape,
            [start for _, start, *_ in found],
            [mask for _, _, mask, *_ in found],
            [label for *_, label, _ in found],
            [score for *_, score in found],
        )

    def _advance(self, voted: int) -> None:
        """Decide what can be decided once all votes for the slices before `voted` are known."""
        self._centres.search(self._density, voted)
        while self._waiting:
            voters = self._waiting[0]
            owners = self._centres.owners(voters.votes, self._reach * self._spacing[0])
            if owners is None:
                break
            self._assign(voters, owners)
            self._waiting.pop(0)
        first = self._waiting[0].first if self._waiting else self._known
        self._close(first - 2 * self._reach)

    def _assign(self, voters: _Voters, owners: Indices) -> None:
        """Give voxels to the instances of their centres; -1 for none."""
        order = np.argsort(owners, kind="stable")
        order = order[owners[order] >= 0]
        if not len(order):
            return
        numbers, starts = np.unique(owners[order], return_index=True)
        for number, part in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            voxels = voters.places[part], voters.classes[part], voters.scores[part]
            self._open.setdefault(number, []).append(voxels)

    def _close(self, before: int | None) -> None:
        """Complete the instances whose centre is in a slice before `before`; None for all."""
        for number in list(self._open):
            if before is not None and self._centres.place(number)[0] >= before:
                continue
            places, classes, scores = (
                np.concatenate(part) for part in zip(*self._open.pop(number), strict=True)
            )
            start = places.min(axis=0)
            mask = np.zeros(places.max(axis=0) - start + 1, bool)
            mask[tuple((places - start).T)] = True
            mask, kept = _largest_part(mask, places - start)
            if len(kept) and np.count_nonzero(kept) >= self._settings.min_voxels:
                label = int(np.bincount(classes[kept]).argmax())
                trimmed, low = _trimmed(mask)
                key = self._centres.order(number)
                corner = tuple(int(a + b) for a, b in zip(start, low, strict=True))
                self._found.append((key, corner, trimmed, label, float(scores[kept].mean(dtype=np.float64))))


class _Density:
    """The number of votes per voxel in the slices that may still be needed, and the sum of the lengths of their offsets.

    Args:
        shape: Shape of the image.
        spacing: Voxel size in mm per axis.
        sigma: Standard deviation of the smoothing in mm.

    Attributes:
        margin: Slices on each side that the smoothing needs.
        single: The largest density of a single vote after the smoothing.
    """

    def __init__(self, shape: tuple[int, ...], spacing: Floats, sigma: float) -> None:
        self._shape, self._finest = shape, float(spacing.min())
        self._sigma = sigma / spacing
        self.single = float(np.minimum(1 / (np.sqrt(2 * np.pi) * np.maximum(self._sigma, 1e-6)), 1).prod())
        self.margin = int(_TRUNCATE * self._sigma[0] + 0.5)
        self._first = 0
        self._votes = np.zeros((0, *shape[1:]), np.int32)
        self._lengths = np.zeros((0, *shape[1:]), np.int32)

    def add(self, votes: NDArray[np.float32], weights: Floats, lengths: Floats, end: int) -> None:
        """Count votes `(v, d)`, none of which is for a slice from `end` on."""
        missing = min(end, self._shape[0]) - self._first - len(self._votes)
        if missing > 0:
            empty = np.zeros((missing, *self._shape[1:]), np.int32)
            self._votes = np.concatenate([self._votes, empty])
            self._lengths = np.concatenate([self._lengths, empty])
        place = np.rint(votes).astype(np.intp)
        place[:, 0] -= self._first
        flat = np.ravel_multi_index(tuple(place.T), self._votes.shape)
        counted = np.maximum(np.rint(_WEIGHTS * np.clip(weights, 0, 1)), 1).astype(np.int32)
        steps = np.rint(_LENGTHS * lengths / self._finest).astype(np.int32)
        np.add.at(self._votes.reshape(-1), flat, counted)
        np.add.at(self._lengths.reshape(-1), flat, counted * steps)

    def smoothed(self, first: int, last: int) -> tuple[Floats, Floats]:
        """Return the smoothed density of some slices, and the mean length (mm) of the offsets that point to each voxel."""
        low, high = max(first - self.margin, 0), min(last + self.margin, self._shape[0])
        held = slice(low - self._first, high - self._first)
        votes, lengths = (
            ndimage.gaussian_filter(
                part[held].astype(np.float32), self._sigma, mode="constant", truncate=_TRUNCATE
            )[first - low : last - low]
            for part in (self._votes, self._lengths)
        )
        mean = lengths / np.maximum(votes, np.finfo(np.float32).tiny) * (self._finest / _LENGTHS)
        return votes / _WEIGHTS, mean

    def drop(self, before: int) -> None:
        """Forget the slices that no later search needs."""
        count = before - self.margin - self._first
        if count > 0:
            self._votes, self._lengths = self._votes[count:].copy(), self._lengths[count:].copy()
            self._first += count


class _Centres:
    """The local maxima of the density of votes, of which those near a denser one are suppressed.

    Args:
        shape: Shape of the image.
        spacing: Voxel size in mm per axis.
        suppression: As in `VoteSettings`.
        min_density: Smallest density of a maximum.
    """

    def __init__(
        self, shape: tuple[int, ...], spacing: Floats, suppression: float, min_density: float
    ) -> None:
        self._shape, self._spacing = shape, spacing
        self._suppression, self._min_density = suppression, min_density
        self._searched = 0
        self._decided = 0  # all centres in slices before this one are known
        self._maxima = np.zeros((0, len(shape)), np.intp)
        self._values = np.zeros(0)
        self._radii = np.zeros(0)  # mm
        self._state = np.zeros(0, np.int8)  # -1 undecided, 0 suppressed, 1 centre
        self._tree: tuple[KDTree, Indices] | None = None

    def place(self, number: int) -> tuple[int, ...]:
        """Return the voxel of a centre."""
        return tuple(int(index) for index in self._maxima[number])

    def order(self, number: int) -> int:
        """Return a number by which centres are sorted: their position in the array."""
        return int(np.ravel_multi_index(self.place(number), self._shape))

    def search(self, density: _Density, voted: int) -> None:
        """Find the maxima and centres that can be decided once all votes for the slices before `voted` are known."""
        last = self._shape[0] if voted == self._shape[0] else voted - density.margin - 1
        if last > self._searched:
            self._find_maxima(density, self._searched, last)
            self._searched = last
            density.drop(last - 1)
        self._suppress()

    def owners(self, votes: NDArray[np.float32], limit: float) -> Indices | None:
        """Return the number of the centre nearest to each vote within `limit` mm, -1 for none; None if it is not decided yet."""
        complete = self._decided == self._shape[0]
        ahead = (self._decided - votes[:, 0]) * self._spacing[0]
        if not complete and len(ahead) and ahead.min() <= 0:
            return None
        if self._tree is None:
            return np.full(len(votes), -1, np.intp) if complete or (ahead > limit).all() else None
        tree, numbers = self._tree
        distances, nearest = tree.query(votes * self._spacing, distance_upper_bound=limit)
        if not complete and (np.minimum(distances, limit) >= ahead).any():
            return None
        missed = ~np.isfinite(distances)
        return np.where(missed, -1, numbers[np.where(missed, 0, nearest)])

    def _find_maxima(self, density: _Density, first: int, last: int) -> None:
        low, high = max(first - 1, 0), min(last + 1, self._shape[0])
        values, lengths = density.smoothed(low, high)
        largest = ndimage.maximum_filter(values, 3, mode="constant")
        seen = slice(first - low, last - low)
        peaks = (values == largest)[seen] & (values[seen] >= self._min_density)
        places = np.argwhere(peaks)
        at = tuple((places + np.array([first - low] + [0] * (places.shape[1] - 1))).T)
        places[:, 0] += first
        self._maxima = np.concatenate([self._maxima, places])
        self._values = np.concatenate([self._values, values[at]])
        self._radii = np.concatenate([self._radii, self._suppression * lengths[at]])
        self._state = np.concatenate([self._state, np.full(len(places), -1, np.int8)])

    def _suppress(self) -> None:
        """Decide about the maxima whose whole neighbourhood was searched."""
        complete = self._searched == self._shape[0]
        waiting = np.flatnonzero(self._state < 0)
        ahead = (self._searched - self._maxima[waiting, 0]) * self._spacing[0]
        ready = waiting if complete else waiting[ahead > self._radii[waiting]]
        if len(ready):
            points = self._maxima * self._spacing
            near = KDTree(points).query_ball_point(points[ready], self._radii[ready])
            for number, others in zip(ready.tolist(), near, strict=True):
                self._state[number] = not any(self._is_denser(other, number) for other in others)
            chosen = np.flatnonzero(self._state > 0)
            self._tree = (KDTree(points[chosen]), chosen) if len(chosen) else None
        left = self._maxima[self._state < 0, 0]
        self._decided = min(self._searched, int(left.min())) if len(left) else self._searched

    def _is_denser(self, one: int, other: int) -> bool:
        """Return whether a maximum is larger than another, or as large and earlier."""
        return bool((-self._values[one], one) < (-self._values[other], other))


def _largest_part(mask: Mask, places: NDArray[Any]) -> tuple[Mask, NDArray[np.bool_]]:
    """Return the largest connected component of a mask, and which of its voxels `(v, d)` belong to it."""
    parts, count = connected_components(mask)
    if count > 1:
        mask = parts == component_sizes(parts, count).argmax()
    return mask, mask[tuple(places.T)]


def _trimmed(mask: Mask) -> tuple[Mask, tuple[int, ...]]:
    """Return a mask without empty margins, and the voxel at which it starts."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    return mask[box], tuple(side.start for side in box)
