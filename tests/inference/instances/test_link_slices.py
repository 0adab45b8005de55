"""Linking of slices: objects that touch in the slices come out one by one, also of slices that are not perfect."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import DataError
from medseg.evaluation.instances.metrics import match_instances
from medseg.inference.instances.link_slices import link_slices
from medseg.labels.instances import Instances
from medseg.model_folder.settings import LinkSettings

OBJECTS = 20


def packed_ellipsoids(seed: int) -> np.ndarray:
    """Map `(100, 84, 44)` of 20 ellipsoids, larger than the gaps between them, so that neighbours touch."""
    rng = np.random.default_rng(seed)
    shape = (100, 84, 44)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    depth = np.full(shape, np.inf, np.float32)
    ids = np.zeros(shape, np.int32)
    for number in range(OBJECTS):
        middle = np.array([12 + 19 * (number % 5), 12 + 20 * (number // 5), 22]) + rng.uniform(-2, 2, 3) * (
            1,
            1,
            3,
        )
        radii = rng.uniform((10, 10, 9), (13, 13, 14))
        distance = (((points - middle[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
        nearer = (distance < 1) & (distance < depth)
        ids[nearer], depth[nearer] = number + 1, distance[nearer]
    return ids


def slices_of(ids: np.ndarray, axis: int = 2) -> list[Instances]:
    return [Instances.from_map(np.take(ids, z, axis)) for z in range(ids.shape[axis])]


def imperfect(perfect: list[Instances], seed: int) -> list[Instances]:
    """Slices with eroded (3 in 10), dropped (1 in 30) and split (1 in 20) instances, numbered anew."""
    rng = np.random.default_rng(seed)
    result = []
    for instances in perfect:
        masks = []
        for mask in instances.to_masks():
            kind = rng.random()
            if kind < 1 / 30:
                continue
            if kind < 1 / 3:
                mask = ndimage.binary_erosion(mask)
            if kind > 0.95:
                normal, (a, b) = rng.normal(size=2), np.nonzero(mask)
                side = normal[0] * (a - a.mean()) + normal[1] * (b - b.mean()) > rng.uniform(-2, 2)
                for part in (side, ~side):
                    masks.append(np.zeros_like(mask))
                    masks[-1][a[part], b[part]] = True
            else:
                masks.append(mask)
        masks = [mask for mask in masks if mask.any()]
        stack = (
            np.stack(masks)[rng.permutation(len(masks))] if masks else np.zeros((0, *instances.shape), bool)
        )
        result.append(Instances.from_masks(stack, scores=rng.uniform(0.5, 1, len(stack))))
    return result


def test_phantom_needs_more_than_overlap():
    ids = packed_ellipsoids(0)
    assert len(np.unique(ids)) == OBJECTS + 1
    assert ndimage.label(ids > 0)[1] < OBJECTS / 4
    assert ndimage.label(ids[..., 22] > 0)[1] < OBJECTS / 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_perfect_slices_give_every_instance(axis):
    ids = np.moveaxis(packed_ellipsoids(axis), 2, axis)
    found = link_slices(slices_of(ids, axis), axis=axis)
    assert len(found) == OBJECTS
    figures = match_instances(found, Instances.from_map(ids)).metrics()
    assert (figures.tp, figures.fp) == (OBJECTS, 0)
    assert figures.sq == 1


@pytest.mark.slow
def test_imperfect_slices_give_nearly_every_instance():
    """Over five phantoms: 95 % of the objects come out as one instance, and few instances are too many."""
    found = false = 0
    for seed in range(5):
        ids = packed_ellipsoids(seed)
        slices = imperfect(slices_of(ids), seed)
        linked = link_slices(slices)
        figures = match_instances(linked, Instances.from_map(ids)).metrics()
        found += figures.tp
        false += figures.fp
    assert found >= 0.95 * 5 * OBJECTS
    assert false <= 0.05 * 5 * OBJECTS


def column(*spans: range, depth: int = 10, split: int | None = None) -> np.ndarray:
    """Map `(8, 8, depth)` with a square bar in each span of slices; in slice `split` it is two halves."""
    ids = np.zeros((8, 8, depth), np.int32)
    for number, span in enumerate(spans, start=1):
        ids[2:6, 2:6, span.start : span.stop] = number
    if split is not None:
        ids[2:4, 2:6, split] = 9
    return ids


def test_a_missing_slice_is_bridged_and_two_are_not():
    bar = column(range(1, 9))
    bar[..., 4] = 0
    (one,) = link_slices(slices_of(bar)).areas
    assert one == 7 * 16
    bar[..., 5] = 0
    assert link_slices(slices_of(bar)).areas.tolist() == [3 * 16, 3 * 16]
    assert len(link_slices(slices_of(bar), settings=LinkSettings(max_gap_slices=2))) == 1
    bar = column(range(1, 9))
    bar[..., 4] = 0
    assert len(link_slices(slices_of(bar), settings=LinkSettings(max_gap_slices=0))) == 2


@pytest.mark.parametrize("split", [1, 4, 8])
def test_halves_in_a_slice_are_merged(split):
    bar = column(range(1, 9), split=split)
    (area,) = link_slices(slices_of(bar)).areas
    assert area == 8 * 16
    apart = link_slices(slices_of(bar), settings=LinkSettings(max_fragment_slices=0))
    assert sorted(apart.areas.tolist()) == [8, 7 * 16 + 8]


def test_small_neighbour_is_not_merged():
    ids = column(range(10))
    ids[6:8, 2:6, 4:6] = 2  # beside the bar in two slices, never over or under it
    assert sorted(link_slices(slices_of(ids)).areas.tolist()) == [16, 160]


def test_instance_starting_where_another_ends_is_separate():
    ids = column(range(5))
    ids[4:8, 5:8, 5:6] = 2
    assert sorted(link_slices(slices_of(ids)).areas.tolist()) == [12, 80]


def test_cap_belongs_to_its_instance():
    ids = column(range(9))
    ids[..., 9] = 0
    ids[4, 4, 9] = 1
    assert link_slices(slices_of(ids)).areas.tolist() == [9 * 16 + 1]
    assert len(link_slices(slices_of(ids[..., ::-1]))) == 1
    strict = LinkSettings(min_containment=1, min_iou=0.9, max_fragment_slices=0)
    ids[1, 4, 9] = 1
    assert len(link_slices(slices_of(ids), settings=strict)) == 2


def test_classes_are_not_linked_and_scores_are_weighted_by_area():
    masks = np.zeros((1, 6, 6), bool)
    large, small = masks.copy(), masks.copy()
    large[0, :4], small[0, :2] = True, True
    first = Instances.from_masks(large, classes=[2], scores=[0.9])
    second = Instances.from_masks(small, classes=[2], scores=[0.6])
    other = Instances.from_masks(small, classes=[1], scores=[0.1])
    found = link_slices([first, second, other])
    assert found.classes.tolist() == [2, 1]
    assert found.scores.tolist() == pytest.approx([(24 * 0.9 + 12 * 0.6) / 36, 0.1])
    assert len(link_slices([first, second, other], settings=LinkSettings(min_slices=2))) == 1


def test_empty_slices_have_no_instances():
    assert len(link_slices([Instances.empty((4, 5))] * 3)) == 0
    assert link_slices([Instances.empty((4, 5))] * 3, axis=0).shape == (3, 4, 5)
    hollow = Instances.from_masks(np.zeros((1, 4, 5), bool))
    assert link_slices([hollow]).areas.tolist() == [0]


def test_invalid_slices_raise():
    with pytest.raises(DataError, match="expected slices of one shape"):
        link_slices([])
    with pytest.raises(DataError, match="expected slices of one shape"):
        link_slices([Instances.empty((4, 5)), Instances.empty((5, 4))])
    with pytest.raises(DataError, match="axis: found 3"):
        link_slices([Instances.empty((4, 5))], axis=3)
