"""Volumes of labels and regions, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.labels.label_table import Labels
from medseg.labels.label_volumes import label_volumes, voxel_counts
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"background": 0, "oedema": 1, "core": 2, "vessel": 300})


def test_volumes_of_labels_and_absent_ones():
    data = np.zeros((1, 4, 5, 6), np.uint16)
    data[0, :2, :, :3] = 1
    data[0, 3, 0, 0] = 300
    label_map = Volume(data, Grid.from_spacing((4, 5, 6), (1, 2, 2.5)).reoriented("LPS"), "label")
    assert [(one.value, one.name, one.ml) for one in label_volumes(label_map, LABELS)] == [
        (1, "oedema", pytest.approx(30 * 5 / 1000)),
        (2, "core", 0.0),
        (300, "vessel", pytest.approx(0.005)),
    ]


def test_a_region_is_the_union_of_its_labels():
    data = np.array([0, 1, 2, 2], np.uint8).reshape(1, 2, 2, 1)
    label_map = Volume(data, Grid.from_spacing((2, 2, 1), (10, 10, 10)), "label")
    regions = LABELS.with_regions({"whole": [1, 2], "core": [2]})
    assert [(one.name, one.ml) for one in label_volumes(label_map, regions)] == [
        ("whole", pytest.approx(3.0)),
        ("core", pytest.approx(2.0)),
    ]


def test_values_of_nine_digits_take_no_table_of_that_length():
    atlas = Labels.from_names({"background": 0, "fibre tract": 614454277})
    data = np.zeros((1, 2, 2, 2), np.int32)
    data[0, 0, 0] = 614454277
    label_map = Volume(data, Grid.from_spacing((2, 2, 2), (10, 10, 10)), "label")
    assert [one.ml for one in label_volumes(label_map, atlas)] == [pytest.approx(2.0)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">u2", np.uint64, bool])
def test_voxels_are_counted_whatever_their_type(dtype):
    values = np.array([[[0, 1], [1, 1]]]).astype(dtype)
    assert voxel_counts(values) == {0: 1, 1: 3}
    assert voxel_counts(np.asfortranarray(values)[:, ::-1]) == {0: 1, 1: 3}
    assert voxel_counts(values[:0]) == {}
