"""Corrections of label maps."""

from __future__ import annotations

import numpy as np

from medseg.inference.postprocess import keep_largest_components


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


def test_corners_touch_and_ties_stay():
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
