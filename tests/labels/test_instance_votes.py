"""Instances from votes: equal to the known ones, whatever the blocks, in memory that does not grow with the depth."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from medseg.data.datasets.phantom import instance_phantom
from medseg.errors import DataError
from medseg.labels.instance_votes import VoteDecoder, VoteSettings, VotingSlices
from medseg.labels.instances import Instances


def slices_of(ids, noise=0.0, classes=None, seed=0):
    """What a network predicts that knows the instances, with errors of the offsets."""
    rng = np.random.default_rng(seed)
    offsets = np.zeros((ids.ndim, *ids.shape), np.float32)
    for number in np.unique(ids[ids > 0]):
        places = np.argwhere(ids == number)
        inner = tuple(places.T)
        offsets[(slice(None), *inner)] = (places.mean(axis=0) - places).T
    offsets += rng.normal(size=offsets.shape).astype(np.float32) * noise
    weights = rng.uniform(0.2, 1, ids.shape)
    found = (ids > 0).astype(np.int64) if classes is None else classes
    return VotingSlices(found, np.full(ids.shape, 0.9), weights, offsets)


def part_of(slices, first, last):
    return VotingSlices(
        slices.classes[first:last],
        slices.scores[first:last],
        slices.weights[first:last],
        slices.offsets[:, first:last],
    )


def decoded(slices, spacing, size=None, reach=None, length=4.0):
    shape = slices.classes.shape
    decoder = VoteDecoder(shape, spacing, length, reach=reach)
    for first in range(0, shape[0], size or shape[0]):
        decoder.add(part_of(slices, first, first + (size or shape[0])))
    return decoder.finish()


def assert_same(one, other):
    assert len(one) == len(other)
    assert np.array_equal(one.starts, other.starts)
    assert all(np.array_equal(a, b) for a, b in zip(one.masks, other.masks, strict=True))
    assert np.array_equal(one.classes, other.classes)
    assert np.allclose(one.scores, other.scores, atol=1e-6)


def iou_with(found, ids):
    """The IoU of each known instance with the found one that overlaps it most."""
    ours, known = found.to_map(), Instances.from_map(ids)
    values = []
    for index, mask in enumerate(known.masks):
        inside = ours[known.box(index)][mask]
        best = np.bincount(inside, minlength=len(found) + 1)[1:].argmax() + 1
        shared = np.count_nonzero(inside == best)
        values.append(shared / (np.count_nonzero(mask) + np.count_nonzero(ours == best) - shared))
    return values


@pytest.mark.parametrize("spacing", [(1, 1, 1), (4, 1, 1.5)])
def test_touching_ellipsoids_are_found_one_by_one(spacing):
    shape = [round(44 / mm) for mm in spacing]
    _, ids = instance_phantom(3, count=9, shape=shape, spacing=spacing)
    found = decoded(slices_of(ids.data[0], noise=0.8), spacing)
    assert len(found) == int(ids.data.max()) == 9
    assert min(iou_with(found, ids.data[0])) > 0.9
    assert found.scores == pytest.approx(np.full(9, 0.9))


@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_blocks_of_slices_do_not_matter(size):
    _, ids = instance_phantom(1, count=12, shape=(70, 40, 36))
    slices = slices_of(ids.data[0], noise=2.5)
    whole = decoded(slices, (1, 1, 1), reach=14)
    assert len(whole) > 6
    assert_same(decoded(slices, (1, 1, 1), size, reach=14), whole)


def test_long_offsets_are_cut_at_the_reach():
    ids = np.ones((30, 3, 3), np.int32)
    slices = slices_of(ids)
    assert len(decoded(slices, (1, 1, 1))) == 1
    assert len(decoded(slices, (1, 1, 1), reach=1)) > 1


def test_an_instance_has_the_class_of_most_of_its_voxels_and_no_satellites():
    ids = np.zeros((20, 20), np.int32)
    ids[2:9, 2:9], ids[12:18, 3:9] = 1, 2
    classes = (ids > 0) * np.where(np.arange(20)[:, None] < 4, 1, 2)
    slices = slices_of(ids, classes=classes)
    slices.classes[0, 18] = 1  # a voxel far away that points to the first instance
    slices.offsets[:, 0, 18] = (5, -13)
    found = decoded(slices, (1, 1))
    assert found.classes.tolist() == [2, 2]
    assert np.array_equal(found.to_map(), ids)


def test_no_foreground_has_no_instances_and_small_ones_are_left_out():
    empty = np.zeros((6, 5, 4), np.int32)
    assert len(decoded(slices_of(empty), (1, 1, 1), size=2)) == 0
    empty[2, 2, 1:3] = 1
    assert len(decoded(slices_of(empty), (1, 1, 1))) == 0
    decoder = VoteDecoder(empty.shape, (1, 1, 1), 1.0, settings=VoteSettings(min_votes=0.5, min_voxels=2))
    decoder.add(slices_of(empty))
    assert decoder.finish().areas.tolist() == [2]


def test_slices_of_another_image_and_missing_ones_are_refused():
    decoder = VoteDecoder((4, 3, 3), (1, 1, 1), 2.0)
    with pytest.raises(DataError, match=r"slices: found 5 of shape \(3, 3\) after 0, expected 4"):
        decoder.add(slices_of(np.zeros((5, 3, 3), np.int32)))
    decoder.add(slices_of(np.zeros((2, 3, 3), np.int32)))
    with pytest.raises(DataError, match="slices: found 2, expected 4"):
        decoder.finish()


def test_memory_does_not_grow_with_the_depth():
    _, ids = instance_phantom(2, count=8, shape=(48, 40, 40))
    slices = slices_of(ids.data[0])

    def peak(repeats):
        decoder = VoteDecoder((48 * repeats, 40, 40), (1, 1, 1), 4.0, reach=12)
        tracemalloc.start()
        for _ in range(repeats):
            for first in range(0, 48, 8):
                decoder.add(part_of(slices, first, first + 8))
        found = decoder.finish()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found) == 8 * repeats
        return most - sum(mask.nbytes for mask in found.masks)

    assert peak(8) < 1.25 * peak(2)
