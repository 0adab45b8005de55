"""What preparing an image needs to repeat nnU-Net: its mask, single axes left alone, its rule for thick slices."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data.preprocessing.prepare import (
    Normalization,
    Preprocessing,
    label_target,
    nonzero_mask,
    prepare,
    prepare_label,
)
from medseg.errors import DataError
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.golden_preprocessing import golden_data


def test_masked_normalisation_equals_golden_values_everywhere(golden):
    data = golden_data()
    result = Normalization(method="zscore_mask").apply(data, data > 0).ravel()[:12]
    expected = golden["normalisation"]["first_12"]["ZScoreNormalization_masked"]
    np.testing.assert_allclose(
        result[data.ravel()[:12] > 0], np.array(expected)[data.ravel()[:12] > 0], atol=1e-4
    )
    assert np.array_equal(result[data.ravel()[:12] <= 0], data.ravel()[:12][data.ravel()[:12] <= 0])


def test_mask_equals_golden_values(golden):
    """Channels are joined and holes filled: 30 voxels of the box are outside, the hole is not."""
    data = np.zeros((2, 6, 7, 8), np.float32)
    data[0, 1:4, 2:6, 1:5] = 1
    data[0, 2, 3, 2] = 0
    data[1, 2:5, 3:5, 2:7] = 2
    mask = nonzero_mask(data)
    assert mask[2, 3, 2]
    assert (~mask[1:5, 2:6, 1:7]).sum() == golden["crop"]["n_outside"]


def test_holes_are_filled_in_volumes_but_not_in_single_slices():
    data = np.ones((1, 5, 5, 5), np.float32)
    data[0, 2, 2, 2] = 0
    assert nonzero_mask(data).all()
    assert nonzero_mask(data[..., 2:3]).sum() == 24


def test_all_channels_are_normalised_in_one_mask():
    """The first channel's zero inside the second counts, and outside both nothing changes."""
    data = np.zeros((2, 6, 1, 1), np.float32)
    data[0, 1:3, 0, 0] = 2, 4
    data[1, 1:4, 0, 0] = 1, 1, 4
    settings = Preprocessing(crop_to_nonzero=False, channels=(Normalization(method="zscore_mask"),) * 2)
    result = prepare(Volume(data, Grid.from_spacing((6, 1, 1))), settings).image.data[:, :, 0, 0]
    for channel in range(2):
        values = data[channel, 1:4, 0, 0]
        np.testing.assert_allclose(result[channel, 1:4], (values - values.mean()) / values.std(), rtol=1e-6)
    assert not result[:, [0, 4, 5]].any()


def test_colours_beyond_8_bits_are_refused():
    image = Volume(np.array([1, 2, 300], np.float32).reshape(1, 3, 1, 1), Grid.from_spacing((3, 1, 1)))
    with pytest.raises(DataError, match=r"a\.png: intensities: found 1 to 300, expected 0 to 255"):
        prepare(image, Preprocessing(channels=(Normalization(method="rgb"),)), where="a.png")


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAR"])
def test_null_orientation_keeps_the_file_s_axes(make_volume, axcodes):
    image = make_volume().reoriented(axcodes)
    label = make_volume(kind="label").reoriented(axcodes)
    settings = Preprocessing(orientation=None, channels=(Normalization(method="none"),))
    prepared = prepare(image, settings)
    assert np.array_equal(prepared.image.data, image.data)
    assert np.array_equal(prepare_label(label, prepared, settings).data, label.data)
    target = label_target(prepared, settings, np.uint8)
    target.view[...] = label.data[0]
    assert np.array_equal(target.volume.data, label.data)
    assert target.volume.grid == image.grid


def test_null_spacing_keeps_one_axis(make_volume):
    image = make_volume((6, 5, 4), spacing=(1, 2, 4))
    prepared = prepare(image, Preprocessing(spacing=(2, None, 2)))
    assert prepared.image.grid.shape == (3, 5, 8)
    np.testing.assert_allclose(prepared.image.spacing, (2, 2, 2))


def test_thick_slices_are_decided_by_the_requested_spacing(make_volume):
    """5 slices of 2.98 mm stay 5 when 3.1 mm is wanted: thick by what was asked for, thin by what came out."""
    image = make_volume((10, 6, 5), spacing=(1.1, 1, 2.98))
    settings = Preprocessing(spacing=(1.0, 1.0, 3.1), channels=(Normalization(method="none"),))
    prepared = prepare(image, settings)
    np.testing.assert_allclose(prepared.image.spacing, (1, 1, 2.98))
    assert label_target(prepared, settings, np.uint8).thick_axis == 2
    for index in range(5):  # each slice is kept within its own range
        ours, own = prepared.image.data[..., index], image.data[..., index]
        assert own.min() <= ours.min() < ours.max() <= own.max()
    thin = settings.replace(spacing=(1.0, 1.0, 2.9))
    assert label_target(prepare(image, thin), thin, np.uint8).thick_axis is None
    turned = settings.replace(orientation="SAR", spacing=(3.1, 1.0, 1.0))
    assert label_target(prepare(image, turned), turned, np.uint8).thick_axis == 0
