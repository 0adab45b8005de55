"""Properties of images do not depend on the scale of intensities, and change where an image is spoilt."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from medseg.inference.quality.image_features import IntensitySample, image_features
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def volume(values):
    return Volume(values[None].astype(np.float32), Grid.from_spacing(values.shape, (1, 1, 2)))


@pytest.fixture
def tissue():
    """Smooth structures with some noise; most voxels are dark."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.normal(size=(30, 28, 26)), 2)
    return np.exp(3 * smooth / smooth.std()) + 0.2 * random.normal(size=smooth.shape)


def of(values):
    return {kind: found["MRI"] for kind, found in image_features(volume(values), ["MRI"]).items()}


def test_the_scale_of_intensities_does_not_matter(tissue):
    assert of(tissue * 7000 + 300) == pytest.approx(of(tissue), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "kind", "larger"),
    [
        (
            lambda values: values + np.random.default_rng(1).normal(size=values.shape) * values.std(),
            "noise",
            True,
        ),
        (lambda values: ndimage.gaussian_filter(values, 2), "noise", False),
        (lambda values: ndimage.gaussian_filter(values, 2), "sharpness", False),
        (lambda values: -values, "brightness", True),
        (lambda values: -values, "edges", False),
        (lambda values: np.where(np.arange(26) < 13, values.min(), values), "constant part", True),
        (lambda values: np.where(np.arange(26) < 13, values.min(), values), "one-sidedness", True),
        (lambda values: np.where(values > np.median(values), 1.0, 0.0), "contrast", True),
    ],
)
def test_a_spoilt_image_differs(tissue, spoil, kind, larger):
    before, after = of(tissue)[kind], of(spoil(tissue))[kind]
    assert after > 1.1 * before if larger else after < before / 1.1


def test_pure_noise_has_the_sharpness_one(tissue):
    assert of(np.random.default_rng(2).uniform(size=(40, 40, 40)))["sharpness"] == pytest.approx(1, abs=0.03)


def test_constant_and_damaged_channels_have_few_properties():
    assert of(np.full((9, 9, 9), 4.0)) == {"constant part": 1.0}
    assert of(np.full((9, 9, 9), np.nan)) == {}
    partly = np.random.default_rng(0).normal(size=(9, 9, 9))
    partly[0] = np.nan
    assert all(map(np.isfinite, of(partly).values()))


def test_slices_and_large_images_are_measured(tissue):
    assert {"noise", "sharpness"} <= set(of(tissue[..., :1]))
    large = np.tile(tissue.astype(np.float32), (4, 4, 4))
    assert large.size > 10**6
    assert of(large)["brightness"] == pytest.approx(of(tissue)["brightness"], abs=0.05)


def test_ranks_are_fractions_of_darker_voxels():
    values = np.arange(1000, dtype=np.float64).reshape(10, 10, 10)
    sample = IntensitySample.from_image(volume(values**3))
    assert sample.steps == (slice(None, None, 1),) * 3
    np.testing.assert_allclose(sample.ranks[0], (values + 1) / 1000, rtol=1e-6)


@pytest.mark.parametrize("values", [[3, 1, 2, 1, 1], [0.5, -np.inf, 7.25, -np.inf], [4, 4, 4]])
def test_ranks_are_those_of_scipy(values):
    data = np.array(values, np.float64).reshape(1, 1, 1, -1)
    expected = stats.rankdata(np.nan_to_num(data)) / data.size
    image = Volume(data, Grid.from_spacing(data.shape[1:]))
    assert np.array_equal(IntensitySample.from_image(image).ranks.ravel(), expected.astype(np.float32))
