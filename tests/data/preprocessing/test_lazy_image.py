"""A prepared image made slice by slice equals the one made at once."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medseg.data.preprocessing.lazy_image as slices_module
from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.normalize import Normalization, nonzero_mask
from medseg.data.preprocessing.prepare import Preprocessing, prepare
from medseg.volumes.grid import Grid
from medseg.volumes.resampling import AxisMap, resample
from medseg.volumes.volume import Volume

METHODS = ("ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "none")


@st.composite
def images(draw):
    shape = tuple(draw(st.integers(1, 24)) for _ in range(3))
    target = tuple(draw(st.integers(1, 30)) for _ in range(3))
    orders = [3, 3, 3]
    thick = draw(st.sampled_from((None, 0, 1, 2)))
    if thick is not None:
        orders[thick] = 0
    cuts = sorted({0, target[2], *draw(st.lists(st.integers(0, target[2]), max_size=4))})
    columns = sorted({0, target[0], *draw(st.lists(st.integers(0, target[0]), max_size=3))})
    return shape, target, orders, cuts, columns, draw(st.sampled_from(METHODS)), draw(st.integers(0, 1000))


@settings(max_examples=150, deadline=None)
@given(images())
def test_equals_normalising_and_resampling_everything(case):
    shape, target, orders, cuts, columns, method, seed = case
    rng = np.random.default_rng(seed)
    data = rng.integers(-800, 1500, size=(2, *shape)).astype(np.int16)
    data *= rng.random(shape) > 0.2
    normalization = Normalization(method=method, mean=40, std=120, low=-500, high=900)
    mask = nonzero_mask(data) if method == "zscore_mask" else None
    whole = np.stack([normalization.apply(channel, mask) for channel in data])
    maps = [AxisMap.resize(n, m) for n, m in zip(shape, target, strict=True)]
    expected = np.moveaxis(resample(whole, maps, orders), -1, 1)
    scales = [(normalization.scale(channel, mask), mask) for channel in data]
    with mock.patch.object(slices_module, "_COLUMNS", 7):
        slices, again = (PreparedSlices(data, scales, maps, orders) for _ in range(2))
    assert slices.shape == expected.shape
    found = np.concatenate([slices.slices(a, b) for a, b in itertools.pairwise(cuts)], axis=1)
    spread = max(1.0, float(np.abs(whole).max()))
    np.testing.assert_allclose(found, expected, atol=2e-6 * spread, rtol=0)
    for low, high in itertools.pairwise(columns):  # some columns at a time: the same, bit for bit
        parts = [again.slices(a, b, slice(low, high)) for a, b in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), found[:, :, low:high])
    np.testing.assert_allclose(slices.lowest, whole.min(axis=(1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 3.0), (1.0, 1.0, 9.0)])
def test_any_order_of_reading_gives_the_same(spacing):
    rng = np.random.default_rng(0)
    image = Volume(
        rng.normal(size=(1, 20, 18, 30)).astype(np.float32), Grid.from_spacing((20, 18, 30), (1, 1, 2))
    )
    settings_ = Preprocessing(spacing=spacing)
    depth = prepare(image, settings_).grid.shape[2]
    whole = prepare(image, settings_).slices.slices(0, depth)
    slices = prepare(image, settings_).slices
    for first, last in ((5, 7), (2, 6), (0, 1), (6, depth), (3, 4)):
        last = min(last, depth)
        first = min(first, last - 1)
        np.testing.assert_allclose(slices.slices(first, last), whole[:, first:last], atol=1e-6)


def test_preparing_allocates_no_array_of_the_size_of_the_image():
    import tracemalloc

    image = Volume(np.full((1, 128, 128, 256), 7, np.int16), Grid.from_spacing((128, 128, 256)))
    settings_ = Preprocessing(spacing=(0.9, 0.9, 1.1), channels=(Normalization(method="zscore"),))
    tracemalloc.start()
    prepared = prepare(image, settings_)
    prepared.slices.slices(0, 8)
    prepared.slices.slices(8, 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.8 * image.data.size * 4  # half of it are the 40 slices around those asked for
