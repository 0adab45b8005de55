"""Link the instances of slices into instances of a volume.

A *track* is an instance followed from slice to slice. In each slice, open tracks are assigned to the instances so that the
sum of overlaps is largest (Kuhn 1955; as in Bewley et al. 2016), so that two instances that touch in one slice stay
separate as long as the slices distinguish them. A track is compared with its latest masks, also across a gap of a few
slices. Finally, fragments, which are short tracks that were split off an instance in a slice or two, are merged into the
track that covers their place in the neighbouring slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.errors import DataError
from medseg.labels.instance_overlaps import overlaps_of
from medseg.labels.instances import Instances, Mask
from medseg.model_folder.settings import LinkSettings
from medseg.volumes.boxes import Box

_COVERED = 0.5  # share of a fragment's voxels that the track it is merged into must cover


@dataclass
class _Track:
    """One instance of the volume so far.

    Attributes:
        label: Class of the instance.
        members: Indices of its instances in each slice.
    """

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
        slices: Instances of each slice `(a, b)`, in order, including empty slices.
        axis: Array axis perpendicular to the slices, at which it is inserted into `(a, b)`.
        settings: Link settings; None for the defaults.

    Returns:
        Instances in the order of their first slices. Only instances of the same class are linked. A score is the mean of
        the slices' scores, weighted by their areas.

    Raises:
        DataError: There is no slice, slices have different shapes or more than two axes, or the axis is not 0, 1 or 2.

    Examples:
        >>> disc = np.zeros((4, 4), int)
        >>> disc[1:3, 1:3] = 1
        >>> slices = [Instances.from_map(disc, {1: 1}, {1: 0.9}) for _ in range(3)]
        >>> linked = link_slices(slices)
        >>> len(linked), linked.shape
        (1, (4, 4, 3))
    """
    _check(slices, axis)
    settings = settings or LinkSettings()
    tracks = _tracked(slices, settings)
    if settings.max_fragment_slices:
        tracks = _merge_fragments(tracks, slices, settings)
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
    """Return the largest IoU of each instance of slice z with each track's masks in the slices before.

    Pairs that do not match are absent. Several slices before are compared, because in the last one a track may have been one
    half of a split instance.
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
    """Return the track assigned to each instance, so that the sum of weights is largest."""
    from scipy.optimize import linear_sum_assignment

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


def _merge_fragments(
    tracks: list[_Track], slices: Sequence[Instances], settings: LinkSettings
) -> list[_Track]:
    """Merge fragments, the shortest first, into the track that covers most of them; return all tracks that are left."""
    reach = settings.max_gap_slices + 1
    extents = np.array([_extent(track, slices) for track in tracks]).reshape(-1, 2, 3)
    kept = np.ones(len(tracks), dtype=bool)
    for number in sorted(range(len(tracks)), key=lambda k: len(tracks[k].members)):
        fragment = tracks[number]
        if len(fragment.members) > settings.max_fragment_slices:
            break
        low, high = extents[number] - ((reach, 0, 0), (-reach, 0, 0))
        near = kept & (extents[:, 0] < high).all(axis=1) & (extents[:, 1] > low).all(axis=1)
        shares = {int(k): _covered(fragment, tracks[k], slices, reach) for k in np.flatnonzero(near)}
        whole = max(shares, key=lambda k: shares[k], default=number)
        if shares.get(whole, 0) >= _COVERED:
            for z, indices in fragment.members.items():
                tracks[whole].members.setdefault(z, []).extend(indices)
            extents[whole, 0] = np.minimum(extents[whole, 0], extents[number, 0])
            extents[whole, 1] = np.maximum(extents[whole, 1], extents[number, 1])
            kept[number] = False
    return [track for track, keep in zip(tracks, kept, strict=True) if keep]


def _extent(track: _Track, slices: Sequence[Instances]) -> list[list[int]]:
    """Return the first slice, row and column of a track, and those after its last ones."""
    members = [(slices[z], index) for z, indices in track.members.items() for index in indices]
    starts = [one.starts[index] for one, index in members]
    ends = [one.starts[index] + one.masks[index].shape for one, index in members]
    return [
        [track.first, *np.min(starts, axis=0).tolist()],
        [track.last + 1, *np.max(ends, axis=0).tolist()],
    ]


def _covered(fragment: _Track, track: _Track, slices: Sequence[Instances], reach: int) -> float:
    """Return the share of a fragment's voxels that are over or under `track`, up to `reach` slices away.

    It is 0 unless the track is longer, has the same class, and is present in a slice of the fragment or on both sides of it:
    an instance that begins where another one ends is not a fragment of it.
    """
    if track is fragment or track.label != fragment.label or len(track.members) <= len(fragment.members):
        return 0.0
    common = fragment.members.keys() & track.members.keys()
    if not common and not track.first < fragment.first <= fragment.last < track.last:
        return 0.0
    inside = area = 0
    for z, indices in fragment.members.items():
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
    """Return the part of instance `index` within `box`, as a mask of the box's size."""
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
    """Return start `(a, b)` and mask `(slices, a, b)` of a track in its box, and its score."""
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
