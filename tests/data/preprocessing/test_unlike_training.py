"""Images that a model was not trained for."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data.preprocessing.unlike_training import check_against_model, is_constant
from medseg.errors import DataError, collected_warnings
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def notes_of(data, window=(8, 8, 8), names=("T1", "T2")):
    image = Volume(data, Grid.from_spacing(data.shape[1:]))
    with collected_warnings() as notes:
        check_against_model(image, names, window, ["a_t1.nii", "a_t2.nii"], "a_t1.nii")
    return notes


def test_the_channels_of_both_sides_are_named():
    message = r"a_t1\.nii: channels: found 3 \(a_t1\.nii, a_t2\.nii\), expected 2 \(T1, T2\)\. Give one file per channel"
    with pytest.raises(DataError, match=message):
        notes_of(np.zeros((3, 4, 4, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, bool])
def test_a_constant_channel_is_reported_with_its_value(dtype):
    data = np.random.default_rng(0).integers(0, 2, (2, 20, 18, 16)).astype(dtype)
    assert notes_of(data) == []
    data[1] = 1
    (note,) = notes_of(data)
    assert note.startswith("a_t1.nii: channel T2: found the value 1 in all voxels")
    data[1, 19, 17, 15] = 0  # one voxel outside of the sample
    assert notes_of(data) == []


def test_values_that_are_not_numbers_are_left_to_another_check():
    assert not is_constant(np.full((3, 3, 3), np.nan))


def test_a_single_slice_is_reported_for_3d_models_only():
    data = np.random.default_rng(0).random((2, 20, 18, 1))
    (note,) = notes_of(data)
    assert "a_t1.nii: found a single slice (20x18x1 voxels), expected a volume" in note
    assert notes_of(data, (8, 8, 1)) == []
    assert notes_of(data.transpose(0, 3, 1, 2), (8, 8, 1)) == []
