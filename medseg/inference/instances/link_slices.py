"""Instances of single slices linked into instances of the volume.

A track is an instance followed from slice to slice. In every slice the open tracks are assigned to its
instances so that the sum of overlaps is largest (Kuhn 1955, as in Bewley et al. 2016), so that two objects
that touch in a slice stay apart as long as the slices tell them apart. A track is compared with its last masks,
also where its last slice lies a gap back; and a piece that was cut off an instance in a slice or two is put
back into the track that covers its place in the neighbouring slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from medseg.errors import DataError
from medseg.labels.instance_overlaps import overlaps_of
from medseg.labels.instances import Instances, Mask
from medseg.model_folder.link_settings import LinkSettings
from medseg.volumes.boxes import Box

_COVERED = 0.5  # share of a piece's voxels that the track it is put back into must cover


@dataclass
class _Track:
    """One object so far: by slice, the indices of its instances."""

    label: int
    members: dict[int, list[int]]

    @property
    def first(self) -> int:
        return min(self.members)

    @property
    def last(self) -> int:
        return max(self.members)


def link_slices(
    slices: Sequence[Instances], *, axis: int = 2, settings: LinkSettings | None = None
) -> Instances:
    """Link instances of the slices of a volume into instances of the volume.

    Args:
        slices: instances of each slice `(a, b)`, in order; empty slices included.
        axis: array axis across the slices: the result's image is `(a, b, slices)` with that axis put there.
        settings: what may be one object; the defaults unless given.

    Returns:
        Instances in the order of their first slices. Only instances of one class are linked. A score is the mean
        of the slices' scores, weighted by their areas.

    Raises:
        DataError: no slice, slices of different shapes or more than two axes, or an axis other than 0, 1, 2.
    """
    _check(slices, axis)
    settings = settings or LinkSettings()
    tracks = _tracked(slices, settings)
    if settings.max_fragment_slices:
        tracks = _put_back(tracks, slices, settings)
    kept = [track for track in tracks if len(track.members) >= settings.min_slices]
    return _assembled(kept, slices, axis)


def _check(slices: Sequence[Instances], axis: int) -> None:
    shapes = {one.shape for one in slices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise DataError(
            f"slices: found images of {', '.join(map(str, sorted(shapes))) or 'no shape'}, expected slices of one shape "
            "with two axes. Give the instances of every slice of one volume."
        )
    if axis not in (0, 1, 2):
        raise DataError(f"axis: found {axis}, expected 0, 1 or 2. Choose the array axis across the slices.")


def _tracked(slices: Sequence[Instances], settings: LinkSettings) -> list[_Track]:
    tracks: list[_Track] = []
    owner: list[dict[int, int]] = []  # by slice: the track of each instance
    for z, instances in enumerate(slices):
        weights = _similarities(slices, z, owner, settings)
        owner.append(_assigned(weights))
        for index in range(len(instances)):
            number = owner[z].setdefault(index, len(tracks))
            if number == len(tracks):
                tracks.append(_Track(int(instances.classes[index]), {}))
            tracks[number].members[z] = [index]
    return tracks


def _similarities(
    slices: Sequence[Instances], z: int, owner: list[dict[int, int]], settings: LinkSettings
) -> dict[tuple[int, int], float]:
    """Largest IoU of each instance of slice z with each track's masks in the slices before; no match is left out.

    More than the last slice is looked at, because there the track may have been one half of a split instance.
    """
    found: dict[tuple[int, int], float] = {}
    for back in range(max(0, z - 1 - settings.max_gap_slices), z):
        overlaps = overlaps_of(slices[back], slices[z])
        smaller = np.minimum(
            slices[back].areas[overlaps.predicted], slices[z].areas[overlaps.expected]
        )  # of each pair
        same = slices[back].classes[overlaps.predicted] == slices[z].classes[overlaps.expected]
        alike = (overlaps.iou >= settings.min_iou) | (overlaps.shared >= settings.min_containment * smaller)
        for pair in np.flatnonzero(same & alike):
            key = (owner[back][int(overlaps.predicted[pair])], int(overlaps.expected[pair]))
            found[key] = max(found.get(key, 0.0), float(overlaps.iou[pair]))
    return found


def _assigned(weights: dict[tuple[int, int], float]) -> dict[int, int]:
    """The track of each instance that has one, so that the sum of weights is largest."""
    tracks, instances = (sorted({key[side] for key in weights}) for side in (0, 1))
    matrix = np.zeros((len(tracks), len(instances)))
    for (track, instance), weight in weights.items():
        matrix[tracks.index(track), instances.index(instance)] = weight
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return {
        instances[column]: tracks[row]
        for row, column in zip(rows, columns, strict=True)
        if matrix[row, column] > 0
    }


def _put_back(tracks: list[_Track], slices: Sequence[Instances], settings: LinkSettings) -> list[_Track]:
    """Give pieces, the shortest first, to the track that covers most of them; the other tracks stay."""
    reach = settings.max_gap_slices + 1
    extents = np.array([_extent(track, slices) for track in tracks]).reshape(-1, 2, 3)
    kept = np.ones(len(tracks), dtype=bool)
    for number in sorted(range(len(tracks)), key=lambda k: len(tracks[k].members)):
        piece = tracks[number]
        if len(piece.members) > settings.max_fragment_slices:
            break
        low, high = extents[number] - ((reach, 0, 0), (-reach, 0, 0))
        near = kept & (extents[:, 0] < high).all(axis=1) & (extents[:, 1] > low).all(axis=1)
        shares = {int(k): _covered(piece, tracks[k], slices, reach) for k in np.flatnonzero(near)}
        whole = max(shares, key=lambda k: shares[k], default=number)
        if shares.get(whole, 0) >= _COVERED:
            for z, indices in piece.members.items():
                tracks[whole].members.setdefault(z, []).extend(indices)
            extents[whole, 0] = np.minimum(extents[whole, 0], extents[number, 0])
            extents[whole, 1] = np.maximum(extents[whole, 1], extents[number, 1])
            kept[number] = False
    return [track for track, keep in zip(tracks, kept, strict=True) if keep]


def _extent(track: _Track, slices: Sequence[Instances]) -> list[list[int]]:
    """First slice, row and column of a track, and those after its last."""
    members = [(slices[z], index) for z, indices in track.members.items() for index in indices]
    starts = [one.starts[index] for one, index in members]
    ends = [one.starts[index] + one.masks[index].shape for one, index in members]
    return [
        [track.first, *np.min(starts, axis=0).tolist()],
        [track.last + 1, *np.max(ends, axis=0).tolist()],
    ]


def _covered(piece: _Track, track: _Track, slices: Sequence[Instances], reach: int) -> float:
    """Share of a piece's voxels that lie over or under `track`, up to `reach` slices away.

    0 unless the track is longer, of the same class, and lies in a slice of the piece or on both sides of it: an
    object that begins where another one ends is no piece of it.
    """
    if track is piece or track.label != piece.label or len(track.members) <= len(piece.members):
        return 0.0
    beside = piece.members.keys() & track.members.keys()
    if not beside and not track.first < piece.first <= piece.last < track.last:
        return 0.0
    inside = area = 0
    for z, indices in piece.members.items():
        for index in indices:
            mask, box = slices[z].masks[index], slices[z].box(index)
            over = np.zeros_like(mask)
            for other in {*range(z - reach, z + reach + 1)} & track.members.keys():
                for member in track.members[other] if other != z else ():
                    over |= _within(slices[other], member, box)
            inside += int(np.count_nonzero(mask & over))
            area += int(np.count_nonzero(mask))
    return inside / max(area, 1)


def _within(instances: Instances, index: int, box: Box) -> Mask:
    """The part of instance `index` that lies in `box`, as a mask of the box's size."""
    result = np.zeros([side.stop - side.start for side in box], dtype=bool)
    own = instances.box(index)
    low = [max(a.start, b.start) for a, b in zip(own, box, strict=True)]
    high = [min(a.stop, b.stop) for a, b in zip(own, box, strict=True)]
    if all(a < b for a, b in zip(low, high, strict=True)):
        target, source = (
            tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, frame, strict=True))
            for frame in (box, own)
        )
        result[target] = instances.masks[index][source]
    return result


def _assembled(tracks: list[_Track], slices: Sequence[Instances], axis: int) -> Instances:
    shape = list(slices[0].shape)
    shape.insert(axis, len(slices))
    starts, masks, scores = [], [], []
    ordered = sorted(tracks, key=lambda track: track.first)
    for track in ordered:
        start, mask, score = _solid(track, slices)
        starts.append([*start[:axis], track.first, *start[axis:]])
        masks.append(np.moveaxis(mask, 0, axis))
        scores.append(score)
    return Instances.from_crops(shape, starts, masks, [track.label for track in ordered], scores)


def _solid(track: _Track, slices: Sequence[Instances]) -> tuple[list[int], Mask, float]:
    """Start `(a, b)` and mask `(slices, a, b)` of a track in its box, and its score."""
    members = [(z, slices[z], index) for z, indices in track.members.items() for index in indices]
    boxes = np.array([[one.starts[i], one.starts[i] + one.masks[i].shape] for _, one, i in members])
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    mask = np.zeros((track.last - track.first + 1, *(high - low)), dtype=bool)
    for z, one, index in members:
        start = one.starts[index] - low
        box = tuple(slice(s, s + n) for s, n in zip(start, one.masks[index].shape, strict=True))
        mask[z - track.first][box] |= one.masks[index]
    areas = np.array([np.count_nonzero(one.masks[i]) for _, one, i in members])
    scores = np.array([one.scores[i] for _, one, i in members])
    score = np.average(scores, weights=areas) if areas.any() else scores.mean()
    return low.tolist(), mask, float(score)
