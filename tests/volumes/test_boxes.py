"""Bounding boxes of masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.patches.perturb_first_stage import dilated
from medseg.data.preprocessing.prepare import Preprocessing, prepare
from medseg.evaluation.label_maps.surface import surface_distances
from medseg.labels.components import keep_largest_components
from medseg.labels.instances import Instances
from medseg.volumes.boxes import (
    bounding_box,
    bounding_box_of_channels,
    boxes_of_values,
    extended_box,
    span,
    union_of_boxes,
)
from medseg.volumes.grid import Grid
from medseg.volumes.resampling import AxisMap, resample_labels
from medseg.volumes.volume import Volume

BOX = (slice(1, 4), slice(2, 3), slice(3, 7))


def mask_with_two_corners() -> np.ndarray:
    mask = np.zeros((6, 5, 8), bool)
    mask[1, 2, 3] = mask[3, 2, 6] = True
    return mask


def test_box_of_a_mask_and_of_an_empty_mask():
    mask = mask_with_two_corners()
    assert bounding_box(mask) == BOX
    assert bounding_box(mask.astype(np.float32) * -2) == BOX
    assert mask[bounding_box(np.zeros_like(mask))].size == 0


def test_a_margin_ends_at_the_border_of_the_array_and_leaves_an_empty_box_empty():
    mask = mask_with_two_corners()
    assert bounding_box(mask, margin=2) == (slice(0, 6), slice(0, 5), slice(1, 8))
    assert bounding_box(np.zeros_like(mask), margin=2) == (slice(0, 0),) * 3
    assert extended_box(BOX, mask.shape, 0) == BOX


def test_channels_share_one_box_and_an_empty_image_keeps_its_size():
    mask = mask_with_two_corners()
    first, second = mask.copy(), mask.copy()
    first[3], second[1] = False, False
    assert bounding_box_of_channels(np.stack([first, second])) == BOX
    assert bounding_box_of_channels(np.zeros((2, 6, 5, 8))) == (slice(0, 6), slice(0, 5), slice(0, 8))


def test_union_skips_absent_boxes():
    first, second = (slice(1, 2), slice(0, 3)), (slice(4, 6), slice(2, 4))
    assert union_of_boxes([first, None, second], (9, 9)) == (slice(1, 6), slice(0, 4))
    assert union_of_boxes([first, second], (6, 9), margin=1) == (slice(0, 6), slice(0, 5))
    assert union_of_boxes([None, None], (9, 9), margin=1) == (slice(0, 0), slice(0, 0))


@pytest.mark.parametrize(("mask", "expected"), [([0, 1, 0, 1, 0], slice(1, 4)), ([0, 0], slice(0, 0))])
def test_span(mask: list[int], expected: slice):
    assert span(mask) == expected


@given(st.integers(0, 2**32 - 1))
def test_a_box_holds_every_voxel_and_touches_one_on_each_side(seed: int):
    mask = np.random.default_rng(seed).random((4, 5, 6)) > 0.95
    cut = mask[bounding_box(mask)]
    assert cut.sum() == mask.sum()
    if mask.any():
        assert all(np.take(cut, end, axis=axis).any() for axis in range(3) for end in (0, -1))


def test_every_part_that_crops_to_a_mask_uses_the_same_box():
    mask = mask_with_two_corners()
    image = Volume(mask[None].astype(np.float32), Grid.from_spacing(mask.shape))
    prepared = prepare(image, Preprocessing())
    assert (prepared.start, prepared.shape) == ((1, 2, 3), (3, 1, 4))
    (start,) = Instances.from_masks(mask[None]).starts
    assert tuple(start) == (1, 2, 3)
    assert surface_distances(mask, mask, (1, 1, 1)).hausdorff(100) == 0
    assert keep_largest_components(mask.astype(np.uint8), [1]).sum() == 2  # a tie
    assert bounding_box(dilated(mask, 1)) == bounding_box(mask, margin=1)
    doubled = [AxisMap.resize(n, 2 * n) for n in mask.shape]
    assert resample_labels(mask.astype(np.uint8), doubled, (1, 1, 1)).shape == (12, 10, 16)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
@pytest.mark.parametrize("offset", [0, -3, 70_000])
def test_boxes_of_values_are_those_of_each_mask(dtype, offset):
    values = np.random.default_rng(0).integers(0, 6, (5, 7, 6))
    values[values == 4] = 0  # a value between others that does not occur
    if np.can_cast(np.min_scalar_type(offset), dtype) and dtype is not bool:
        values = values + offset
    array = values.astype(dtype)[:, ::-1]
    found = boxes_of_values(array)
    assert list(found) == sorted({int(value) for value in array.ravel()})
    for value, box in found.items():
        assert box == bounding_box(array == value)


def test_an_empty_array_has_no_boxes():
    assert boxes_of_values(np.zeros((0, 3), np.uint8)) == {}
