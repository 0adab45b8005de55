"""From file to network and back: intensities against figures by hand and nnU-Net's, geometry by round trips."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data.preprocessing.histogram import foreground_histograms
from medseg.data.preprocessing.normalize import Normalization, normalizations
from medseg.data.preprocessing.prepare import Preprocessing, check_image, prepare, prepare_masks
from medseg.errors import DataError
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.golden_preprocessing import golden_data


def image_of(values) -> Volume:
    data = np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)
    return Volume(data, Grid.from_spacing(data.shape[1:]))


@pytest.mark.parametrize(
    ("normalization", "values", "expected"),
    [
        (Normalization(method="none"), [1, 2, 6], [1, 2, 6]),
        (Normalization(method="rescale"), [1, 2, 5], [0, 0.25, 1]),
        (Normalization(method="rescale"), [3, 3], [0, 0]),
        (Normalization(method="zscore"), [1, 3], [-1, 1]),
        (Normalization(method="zscore"), [4, 4], [0, 0]),
        (Normalization(method="zscore"), [1e6, 1e6 + 2], [-1, 1]),
        (Normalization(method="zscore_nonzero"), [0, 1, 3, 0], [0, -1, 1, 0]),
        (Normalization(method="zscore_nonzero"), [0, 0], [0, 0]),
        (Normalization(method="zscore_mask"), [0, 1, 3, 0], [0, -1, 1, 0]),
        (Normalization(method="zscore_mask"), [0, 0], [0, 0]),
        (Normalization(method="rgb"), [0, 51, 255], [0, 0.2, 1]),
        (Normalization(method="ct", mean=1, std=2, low=-1, high=3), [-9, 1, 2, 9], [-1, 0, 0.5, 1]),
    ],
)
def test_normalisations_by_hand(normalization, values, expected):
    result = normalization.apply(image_of(values).data[0])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_any_voxel_type_is_normalised(dtype):
    channel = np.array([0, 1, 3], dtype=dtype).reshape(3, 1, 1)
    result = Normalization(method="zscore").apply(channel)
    assert result.dtype == np.float32
    assert result.mean() == pytest.approx(0, abs=1e-6)
    assert channel.tolist() == [[[0]], [[1]], [[3]]]


@pytest.mark.parametrize(
    ("name", "normalization"),
    [
        ("CTNormalization", Normalization(method="ct", mean=1, std=4, low=-8, high=8)),
        ("ZScoreNormalization", Normalization(method="zscore")),
        ("RescaleTo01Normalization", Normalization(method="rescale")),
    ],
)
def test_normalisations_equal_golden_values(golden, name, normalization):
    expected = golden["normalisation"]["first_12"][name]
    result = normalization.apply(golden_data()).ravel()[:12]
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_nonzero_normalisation_equals_golden_values_within_the_mask(golden):
    data = golden_data()
    masked = np.where(data > 0, data, 0)
    result = Normalization(method="zscore_nonzero").apply(masked)
    assert not result[data <= 0].any()  # nnU-Net leaves raw values there
    result = np.where(data > 0, result, data).ravel()[:12]
    np.testing.assert_allclose(
        result, golden["normalisation"]["first_12"]["ZScoreNormalization_masked"], atol=1e-4
    )


def test_crop_equals_golden_box(golden):
    data = np.zeros((2, 6, 7, 8), np.float32)
    data[0, 1:4, 2:6, 1:5] = 1
    data[0, 2, 3, 2] = 0
    data[1, 2:5, 3:5, 2:7] = 2
    settings = Preprocessing(channels=(Normalization(method="none"),) * 2)
    prepared = prepare(Volume(data, Grid.from_spacing((6, 7, 8))), settings)
    box = [[s, s + n] for s, n in zip(prepared.start, prepared.shape, strict=True)]
    assert box == golden["crop"]["bbox"]
    assert list(prepared.image.grid.shape) == golden["crop"]["shape"]
    np.testing.assert_array_equal(prepared.image.grid.affine[:3, 3], [1, 2, 1])


def test_an_empty_image_is_not_cropped():
    prepared = prepare(Volume(np.zeros((1, 3, 4, 5)), Grid.from_spacing((3, 4, 5))), Preprocessing())
    assert prepared.image.grid.shape == (3, 4, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(make_volume, bad):
    image = make_volume()
    image.data[0, 1, 2, 3] = bad
    with pytest.raises(
        DataError,
        match=r"case a: found NaN or infinity in 1 voxel, the first at \(1, 2, 3\), expected none\.",
    ):
        prepare(image, Preprocessing(), where="case a")


def test_wrong_number_of_channels_is_refused(make_volume):
    with pytest.raises(DataError, match=r"a\.nii: channels: found 2, expected 1"):
        prepare(make_volume(channels=2), Preprocessing(), where="a.nii")
    check_image(make_volume(channels=2, dtype=np.int16), 2, "a.nii")


@pytest.mark.parametrize(
    ("found", "expected", "advice"),
    [
        (1, 3, "grey image, convert it to RGB"),
        (3, 1, "colour image, convert it to grey"),
        (4, 1, "convert it to grey, without its alpha channel"),
        (4, 3, "remove the alpha channel"),
        (3, 4, "lacks the alpha channel"),
        (3, 2, "Give one file per channel"),
    ],
)
def test_channels_of_natural_images(make_volume, found, expected, advice):
    with pytest.raises(DataError, match=rf"channels: found {found}, expected {expected}\..*{advice}"):
        check_image(make_volume((9, 8, 1), channels=found), expected, "a.png")


def test_ct_is_measured_over_foreground_alone():
    rng = np.random.default_rng(0)
    inside = rng.random((40, 40, 40)) < 0.5
    values = np.where(inside, rng.normal(50, 10, inside.shape), -1000).astype(np.float32)
    (histogram,) = foreground_histograms(values[None], inside, "case a")
    (found,) = normalizations(["ct"], {0: histogram.intensities()})
    assert found.method == "ct"
    assert found.mean == pytest.approx(values[inside].mean(dtype=np.float64), rel=1e-9)
    assert found.std == pytest.approx(values[inside].std(dtype=np.float64), rel=1e-9)
    low, high = np.percentile(values[inside], [0.5, 99.5])
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-2), pytest.approx(high, rel=1e-2))


def test_no_statistics_are_needed_for_other_methods():
    assert normalizations(["zscore", "none"]) == (
        Normalization(method="zscore"),
        Normalization(method="none"),
    )


@pytest.mark.parametrize(
    "method", ["ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "rgb", "none"]
)
def test_an_absent_channel_is_zero_for_every_normalisation(method: str) -> None:
    """The other channel is prepared as if it were alone, except for masks that channels share."""
    values = np.random.default_rng(0).uniform(1, 200, (1, 9, 8, 7)).astype(np.float32)
    grid = Grid.from_spacing((9, 8, 7), (1, 1, 2))
    one = {"method": method, "mean": 40, "std": 20, "low": 10, "high": 150}
    both = Preprocessing.parse({"spacing": (1.5, 1.5, 1.5), "channels": [one, one]})
    image = Volume(np.concatenate([np.zeros_like(values), values]), grid, absent=(0,))
    prepared = prepare(image, both)
    assert not prepared.image.data[0].any()
    alone = prepare(Volume(values, grid), both.replace(channels=[one]))
    np.testing.assert_array_equal(prepared.image.data[1], alone.image.data[0])
    masks = prepare_masks(prepared, both)
    assert (masks is None) == (method not in ("zscore_nonzero", "zscore_mask"))


def test_zeros_that_are_not_absent_are_normalised_like_other_values() -> None:
    image = Volume(np.zeros((1, 4, 4, 4), np.float32), Grid.from_spacing((4, 4, 4)))
    ct = Preprocessing.parse({"channels": [{"method": "ct", "mean": 40, "std": 20}]})
    assert (prepare(image, ct).image.data == -2).all()
