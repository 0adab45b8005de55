"""Instances: what goes in by masks, maps or parts comes out by masks and maps."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.labels.instances import Instances

MAP = np.array(
    [
        [0, 7, 7, 0, 0],
        [0, 7, 3, 3, 0],
        [900, 0, 0, 3, 0],
    ],
    dtype=np.uint16,
)


def test_a_map_comes_back_with_its_ids_numbered():
    found = Instances.from_map(MAP, classes={3: 1, 7: 2, 900: 1}, scores={3: 0.5, 7: 0.25, 900: 1})
    assert found.areas.tolist() == [3, 3, 1]
    assert found.classes.tolist() == [1, 2, 1]
    assert found.scores.tolist() == [0.5, 0.25, 1]
    assert found.boxes[0].tolist() == [[1, 2], [3, 4]]
    expected = np.select([MAP == 3, MAP == 7, MAP == 900], [1, 2, 3])
    assert (found.to_map() == expected).all()
    assert (found.to_label_map() == np.select([MAP == 3, MAP == 7, MAP == 900], [1, 2, 1])).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
@pytest.mark.parametrize("shape", [(13, 17), (5, 6, 7)])
def test_masks_and_maps_are_the_same_instances(shape, dtype):
    ids = np.random.default_rng(0).integers(0, 12, shape).astype(dtype)
    from_map = Instances.from_map(ids)
    masks = np.stack([ids == i for i in range(1, 12)])
    assert (from_map.to_masks() == masks).all()
    assert (Instances.from_masks(masks).to_map() == ids).all()


def test_ids_beyond_any_table_are_numbered_too():
    ids = MAP.astype(np.int64) * 2_000_000_000
    assert (Instances.from_map(ids).to_map() == Instances.from_map(MAP).to_map()).all()
    assert (Instances.from_map(ids[:1, 1:3]).to_map() == 1).all()  # no background at all


def test_the_higher_score_wins_an_overlap_and_the_earlier_of_equals():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :2], masks[1, 1:3], masks[2, 2:] = True, True, True
    found = Instances.from_masks(masks, scores=[0.5, 0.9, 0.5])
    assert found.to_map()[:, 0].tolist() == [1, 2, 2, 3]
    tied = Instances.from_masks(masks)
    assert tied.to_map()[:, 0].tolist() == [1, 1, 2, 3]
    assert (tied.to_masks() == masks).all()


def test_connected_parts_of_each_class():
    label = np.zeros((6, 6), np.uint8)
    label[0, 0] = label[1, 1] = 1  # by a corner: one part
    label[4:, 4:] = 1
    label[0, 1] = 2
    found = Instances.from_components(label)
    assert found.classes.tolist() == [1, 1, 2]
    assert found.areas.tolist() == [2, 4, 1]
    assert (found.to_label_map() == label).all()


def test_selection_keeps_order():
    found = Instances.from_map(MAP)
    assert found.select([2, 0]).areas.tolist() == [1, 3]
    assert found.select(found.areas > 1).areas.tolist() == [3, 3]
    assert len(found.select([])) == 0


def test_empty_maps_and_masks_have_no_instances():
    none = Instances.empty((4, 5))
    assert len(none) == 0
    assert none.to_map().shape == (4, 5)
    assert none.to_masks().shape == (0, 4, 5)
    assert none.boxes.shape == (0, 2, 2)
    assert len(Instances.from_map(np.zeros((3, 3), int))) == 0
    hollow = Instances.from_masks(np.zeros((2, 3, 3), bool))
    assert hollow.areas.tolist() == [0, 0]
    assert "none" in repr(none)
    assert repr(Instances.from_map(MAP)) == "Instances(3x5, 3 of class 1)"


def test_invalid_instances_raise():
    with pytest.raises(DataError, match=r"ids without a class: found 7, 900 \(2 of 3 ids\)"):
        Instances.from_map(MAP, classes={3: 1})
    with pytest.raises(DataError, match="expected integers"):
        Instances.from_map(MAP.astype(float))
    with pytest.raises(DataError, match="found values of type int64, the lowest -1"):
        Instances.from_map(np.array([[-1, 0]]))
    with pytest.raises(DataError, match="classes from 0, expected finite scores and classes from 1"):
        Instances.from_map(MAP, classes={3: 0, 7: 1, 900: 1})
    with pytest.raises(DataError, match="one of each per instance"):
        Instances.from_masks(np.ones((2, 3, 3), bool), scores=[1.0])
    with pytest.raises(DataError, match="outside of the image"):
        Instances.from_crops((3, 3), [[2, 2]], [np.ones((2, 2), bool)])
