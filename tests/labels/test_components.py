"""Connected components and keeping the largest ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.labels.components import (
    component_sizes,
    components_of_classes,
    connected_components,
    keep_largest_components,
    remove_small_components,
)
from medseg.labels.instances import Instances
from medseg.models.detections import instance_targets


def blocks():
    classes = np.zeros((12, 6, 6), np.uint8)
    classes[0:3, 0:3, 0:3] = 1
    classes[8:9, 0:2, 0:2] = 1
    classes[6:8, 3:6, 3:6] = 2
    classes[11, 5, 5] = 2
    return classes


def test_only_the_wanted_class_is_cleaned_and_the_input_stays():
    classes = blocks()
    result = keep_largest_components(classes, [1])
    assert (result == 1).sum() == 27
    assert np.array_equal(result == 2, classes == 2)
    assert np.array_equal(classes, blocks())


def test_each_class_by_itself_or_all_together():
    classes = blocks()
    each = keep_largest_components(classes, [1, 2])
    assert ((each == 1).sum(), (each == 2).sum()) == (27, 18)
    classes[3:6, 1, 1] = 2  # now the largest block of class 1 touches one of class 2
    together = keep_largest_components(classes, [1, 2], together=True)
    assert ((together == 1).sum(), (together == 2).sum()) == (27, 3 + 0)


def test_voxels_touching_at_corners_are_connected_and_ties_are_kept():
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = 1
    classes[3, 3, 3] = 1
    assert keep_largest_components(classes, [1]).sum() == 2
    classes[1, 1, 1] = 0
    assert keep_largest_components(classes, [1]).sum() == 2


def test_an_absent_class_and_an_empty_map_change_nothing():
    assert np.array_equal(keep_largest_components(blocks(), [5]), blocks())
    empty = np.zeros((3, 3, 3), np.uint8)
    assert np.array_equal(keep_largest_components(empty, [1, 2]), empty)


def test_corners_connect_wherever_components_are_counted():
    label = np.zeros((5, 5), np.uint8)
    label[0, 0] = label[1, 1] = 1  # one component
    label[3, 3] = 1
    label[4, 4] = 2  # touches the one before by a corner, but is of another class
    components, count = connected_components(label == 1)
    assert count == 2
    assert component_sizes(components, count).tolist() == [0, 2, 1]
    assert components_of_classes(label).max() == 3
    assert len(Instances.from_components(label)) == 3
    (targets,) = instance_targets(
        torch.from_numpy(label.astype(np.int64))[None, None], num_classes=3, limit=9
    )
    assert targets.masks.sum((1, 2)).tolist() == [2, 1, 1]


def test_components_of_classes_are_numbered_in_array_order():
    assert components_of_classes(np.array([[2, 0, 1, 0, 2]])).tolist() == [[1, 0, 2, 0, 3]]


@pytest.mark.parametrize("wanted", [[1, 2, 3], [3], [7, 2], []])
@pytest.mark.parametrize("together", [False, True])
def test_boxes_of_classes_do_not_change_the_result(wanted, together):
    """The definition: each group's components in the whole array."""
    classes = (
        np.random.default_rng(0).choice(5, (9, 10, 11), p=[0.8, 0.06, 0.06, 0.06, 0.02]).astype(np.uint8)
    )
    expected = classes.copy()
    for group in [wanted] if together else [[value] for value in wanted]:
        components, count = connected_components(np.isin(classes, group))
        sizes = component_sizes(components, count)
        expected[(components > 0) & (sizes[components] < sizes.max())] = 0
    assert np.array_equal(keep_largest_components(classes, wanted, together=together), expected)


def test_small_components_of_a_group_are_removed() -> None:
    classes = np.zeros((9, 5, 4), np.uint8)
    classes[0, 0, :2] = 1  # two voxels of a group of two classes
    classes[1, 1, 2] = 2  # the third, at a corner
    classes[4, 2] = 1  # four voxels
    classes[7, :, 0] = 3  # another class
    before = classes.copy()
    assert np.array_equal(remove_small_components(classes, (1, 2), 2), classes)
    result = remove_small_components(classes, (1, 2), 3)
    assert np.array_equal(classes, before)
    assert np.unique(result[:2]).tolist() == [0]
    assert np.array_equal(result[2:], classes[2:])
    assert np.array_equal(np.unique(remove_small_components(classes, (1, 2), 4)), [0, 3])
