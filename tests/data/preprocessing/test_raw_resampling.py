"""Intensities that are resampled raw, and labels that take the nearest voxel, against SciPy's zoom of whole volumes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Prepared, Preprocessing, prepare
from medseg.data.preprocessing.raw_resampling import nearest_label_target, resampled_raw, with_channels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def settings(spacing: float, order: int = 1) -> Preprocessing:
    """Preprocessing of CT at one spacing."""
    channel = Normalization(method="ct", mean=10, std=20, low=-500, high=500)
    return Preprocessing.parse(
        {"spacing": [spacing] * 3, "resample_raw": order, "channels": [channel.to_plain()]}
    )


def ct(shape: tuple[int, int, int], spacing: tuple[float, float, float], dtype: type = np.int16) -> Volume:
    """A volume of whole numbers with constant parts, where sums of weights are not exactly one."""
    data = np.random.default_rng(1).integers(-1024, 1500, shape).astype(dtype)
    data[: shape[0] // 3] = -1024
    return Volume(data[None], Grid.from_spacing(shape, spacing))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_linear_intensities_are_those_of_scipy_bit_for_bit(dtype: type) -> None:
    image = ct((41, 33, 57), (0.7, 1.0, 2.3), np.int16)
    image = image.with_data((image.data + 1024 * (dtype == np.uint16)).astype(dtype))
    found = resampled_raw(image, settings(1.5))
    zoom = np.float32((0.7, 1.0, 2.3)) / 1.5
    expected = ndimage.zoom(image.data[0].astype(float), zoom, order=1, mode="nearest").astype(np.int32)
    np.testing.assert_array_equal(found.data[0], expected)
    assert found.data.dtype == np.int16
    np.testing.assert_allclose(found.grid.spacing, 1.5, rtol=1e-6)


def test_cubic_intensities_are_those_of_scipy_but_for_single_units() -> None:
    image = ct((31, 33, 27), (1.0, 0.8, 3.0))
    found = resampled_raw(image, settings(1.5, 3)).data[0].astype(int)
    zoom = np.float32((1.0, 0.8, 3.0)) / 1.5
    expected = ndimage.zoom(image.data[0].astype(float), zoom, order=3, mode="nearest").astype(int)
    assert np.abs(found - expected).max() <= 1  # -1024 is -1023.9999999 after some sums
    assert np.mean(found != expected) < 0.02
    assert expected.max() > image.data.max(), "the spline overshoots, and is not clipped"


def test_large_intensities_do_not_wrap_around() -> None:
    image = ct((9, 9, 9), (3.0, 3.0, 3.0), np.int32)
    data = image.data * 20
    found = resampled_raw(image.with_data(data), settings(1.5, 3)).data
    assert found.dtype == np.int32
    assert abs(int(found.max()) - int(data.max())) < 20_000


def test_a_file_at_the_spacing_of_the_network_keeps_its_voxels() -> None:
    image = ct((5, 6, 7), (1.5, 1.5, 1.5), np.float32)
    image = image.with_data(image.data + np.float32(0.25))
    np.testing.assert_array_equal(resampled_raw(image, settings(1.5)).data, image.data)


def test_orientation_is_that_of_the_network() -> None:
    image = ct((12, 10, 8), (1.0, 2.0, 3.0))
    turned = image.reoriented("PSL")
    for one in (image, turned):
        found = resampled_raw(one, settings(1.5))
        assert found.grid.axcodes == "RAS"
        np.testing.assert_array_equal(found.data, resampled_raw(image, settings(1.5)).data)


def zoomed_back(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels of the nearest voxels by SciPy."""
    return np.asarray(ndimage.zoom(labels, np.array(shape) / labels.shape, order=0, mode="nearest"))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((41, 33, 57), (0.7, 1.0, 2.3)), ((101, 9, 3), (0.75, 3.0, 9.0)), ((40, 1, 21), (1.5, 1.5, 1.5))],
)
def test_labels_are_those_of_the_nearest_voxels(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    image = ct(shape, spacing).reoriented("LIA")
    image.data[:, :3] = 0
    small = resampled_raw(image, settings(1.5))
    prepared = prepared_from(small)
    result = nearest_label_target(prepared, image, settings(1.5), np.uint8)
    assert result is not None
    target, nearest = result
    labels = np.zeros(small.grid.shape, np.uint8)
    inside = tuple(slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    labels[inside] = np.random.default_rng(2).integers(1, 200, prepared.shape)
    target.view[...] = labels[inside][np.ix_(*nearest)]
    upright = Volume(target.volume.data, image.grid, "label").reoriented("RAS").data[0]
    np.testing.assert_array_equal(upright, zoomed_back(labels, upright.shape))


def prepared_from(small: Volume) -> Prepared:
    """The resampled image, cropped to its non-zero voxels."""
    plain = Preprocessing.parse({"orientation": None, "channels": [{"method": "none"}]})
    return prepare(small, plain)


def test_equal_channels_take_no_memory() -> None:
    image = ct((4, 5, 6), (1.0, 1.0, 1.0))
    several = with_channels(image, 5)
    assert several.channels == 5
    assert np.shares_memory(several.data, image.data)
