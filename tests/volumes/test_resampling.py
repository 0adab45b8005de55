from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from medseg.volumes.resampling import AxisMap, axis_matrix, axis_orders, resample, resample_labels

SIZES = st.integers(1, 9)
SHAPES = st.tuples(SIZES, SIZES, SIZES)


def maps(old: Sequence[int], new: Sequence[int]) -> list[AxisMap]:
    return [AxisMap.resize(n_in, n_out) for n_in, n_out in zip(old, new, strict=True)]


def waves(shape: Sequence[int]) -> NDArray[np.float32]:
    i, j, k = np.indices(shape)
    return np.asarray(10 * np.sin(0.7 * i + 1.3 * j + 0.4 * k), dtype=np.float32)


def blocks(shape: Sequence[int]) -> NDArray[np.int64]:
    i, j, k = np.indices(shape)
    return np.asarray((i // 2 + j // 3 + k // 2) % 3)


def zoomed(array: NDArray[Any], new: Sequence[int], order: int) -> NDArray[Any]:
    factors = [1 / (n_in / n_out) for n_in, n_out in zip(array.shape, new, strict=True)]
    result = ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(result, array.min(), array.max())


@settings(deadline=None, max_examples=60)
@given(SHAPES, SHAPES, st.sampled_from([1, 3]), st.integers(0, 99))
def test_equals_scipy_zoom(old: tuple[int, ...], new: tuple[int, ...], order: int, seed: int) -> None:
    array = np.random.default_rng(seed).normal(0, 10, old)
    result = resample(array, maps(old, new), (order,) * 3)
    assert result.dtype == np.float64
    assert result.shape == new
    np.testing.assert_allclose(result, zoomed(array, new, order), atol=1e-9)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("new", [(12, 9, 11), (5, 4, 3), (7, 8, 9), (1, 20, 8), (16, 16, 16)])
def test_equals_scikit_image(new: tuple[int, ...], order: int) -> None:
    array = np.random.default_rng(1).normal(0, 10, (7, 8, 9))
    expected = resize(array, new, order, mode="edge", clip=True, anti_aliasing=False)
    np.testing.assert_allclose(resample(array, maps(array.shape, new), (order,) * 3), expected, atol=1e-9)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("old", [(1, 1, 1), (1, 5, 1), (4, 1, 3), (2, 2, 1)])
def test_one_slice_volumes(old: tuple[int, ...], order: int) -> None:
    array = waves(old)
    new = (3, 4, 2)
    np.testing.assert_allclose(
        resample(array, maps(old, new), (order,) * 3), zoomed(array, new, order), atol=1e-5
    )


def test_leading_axes_and_types() -> None:
    array = np.stack([waves((4, 5, 6)), 3 * waves((4, 5, 6))])
    result = resample(array, maps((4, 5, 6), (6, 7, 5)), (3, 3, 3))
    assert result.dtype == np.float32
    for channel, source in zip(result, array, strict=True):
        np.testing.assert_allclose(channel, zoomed(source, (6, 7, 5), 3), atol=1e-4)
    integers = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    assert resample(integers, maps((2, 2, 2), (3, 3, 3)), (1, 1, 1)).dtype == np.float32


def test_cubic_results_stay_within_each_channel_and_slice() -> None:
    step = np.zeros((2, 8, 8, 3), dtype=np.float32)
    step[0, 4:, :, 0] = 1
    step[1, 4:, :, 1] = 100
    result = resample(step, maps((8, 8, 3), (13, 13, 3)), (3, 3, 0))
    assert result.min() >= 0
    assert result[0].max() == 1
    assert result[0, ..., 1:].max() == 0
    assert result[1, ..., 1].max() == 100


def test_identity_and_selection_are_exact() -> None:
    array = np.random.default_rng(0).normal(0, 1e4, (4, 5, 6)).astype(np.float32)
    assert np.array_equal(resample(array, maps((4, 5, 6), (4, 5, 6)), (3, 3, 3)), array)
    shifted = [AxisMap(4, 6, 1, -1), AxisMap(5, 2, 2, 1), AxisMap(6, 6, 1, 0)]
    expected = np.pad(array, ((1, 1), (0, 0), (0, 0)), mode="edge")[:, 1:4:2]
    assert np.array_equal(resample(array, shifted, (3, 3, 3)), expected)
    assert np.array_equal(resample_labels(array.astype(int), shifted, (1, 1, 1)), expected.astype(int))


# Copied by hand from runs of nnU-Net 2.8.1: (old, new, spacings, first cubic, first linear, first labels).
GOLDEN = [
    (
        ((4, 5, 6), (6, 7, 5), (1, 1, 1), (0.7, 0.7, 1.2)),
        [-0.89119, 4.26263, 8.08575, 9.99574, 9.95918, 5.69665, 8.44806, 8.99444],
        [0.38942, 4.878, 8.24698, 9.79313, 9.18325, 5.689, 7.53702, 7.71065],
        [
            0,
            0,
            1,
            2,
            2,
            0,
            0,
            1,
            2,
            2,
            0,
            0,
            1,
            2,
            2,
            0,
            0,
            1,
            2,
            2,
            1,
            1,
            2,
            0,
            0,
            1,
            1,
            2,
            0,
            0,
            1,
            1,
            2,
            0,
            0,
        ],
    ),
    (
        ((4, 5, 6), (3, 8, 9), (5, 1, 1), (6, 0.6, 0.65)),
        [-1.08919, 0.91643, 3.98892, 6.35385, 8.24128, 9.66315, 9.99574, 9.99574],
        [0.0, 1.94709, 4.44075, 6.627, 8.24698, 9.43295, 9.88318, 9.54436],
        [
            *[0, 0, 0, 1, 1, 1, 2, 2, 2] * 5,
            *[1, 1, 1, 2, 2, 2, 0, 0, 0] * 3,
        ],
    ),
]


@pytest.mark.parametrize(("case", "cubic", "linear", "labels"), GOLDEN)
def test_equals_nnunet(case: Any, cubic: list[float], linear: list[float], labels: list[int]) -> None:
    old, new, *spacings = case
    for order, expected in ((3, cubic), (1, linear)):
        result = resample(waves(old), maps(old, new), axis_orders(order, *spacings))
        np.testing.assert_allclose(result.ravel()[: len(expected)], expected, atol=1e-4)
    result = resample_labels(blocks(old), maps(old, new), axis_orders(1, *spacings))
    assert result.ravel()[: len(labels)].tolist() == labels


def test_equals_every_golden_value(shared_reference: Path) -> None:
    cases = json.loads((shared_reference / "numeric_golden.json").read_text())["resampling"]["cases"]
    assert cases
    for case in cases:
        old, new = case["shape"], case["new_shape"]
        spacings = (case["current_spacing"], case["new_spacing"])
        for order in (1, 3):
            result = resample(waves(old), maps(old, new), axis_orders(order, *spacings))
            np.testing.assert_allclose(result.ravel(), case[f"data_order{order}_f32"], atol=1e-4)
        labels = resample_labels(blocks(old), maps(old, new), axis_orders(1, *spacings))
        assert labels.ravel().tolist() == case["seg_order1"]


def labels_by_definition(
    array: NDArray[Any], axis_maps: list[AxisMap], orders: Sequence[int]
) -> NDArray[Any]:
    """Each label's share over the whole volume, voxel by voxel the largest, ties as documented."""
    nearest = resample(array.astype(np.float64), axis_maps, (0,) * len(axis_maps)).astype(array.dtype)
    values = np.unique(array)
    matrices = [axis_matrix(m, o) for m, o in zip(axis_maps, orders, strict=True)]
    shares = np.stack(
        [np.einsum("ax,by,cz,xyz->abc", *matrices, (array == value).astype(np.float64)) for value in values]
    ).round(9)
    tied = shares == shares.max(axis=0)
    choice = np.where((values[:, None, None, None] == nearest) & tied, 2, tied)
    return np.asarray(values[choice.argmax(axis=0)])


@settings(deadline=None, max_examples=80)
@given(SHAPES, SHAPES, st.tuples(*[st.integers(0, 1)] * 3), st.integers(0, 10**6))
def test_label_maps_by_definition(
    old: tuple[int, ...], new: tuple[int, ...], orders: tuple[int, ...], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    array = generator.choice([-1, 0, 2, 7, 30000], old).astype(np.int32)
    axis_maps = maps(old, new)
    result = resample_labels(array, axis_maps, orders)
    assert result.dtype == array.dtype
    assert np.array_equal(result, labels_by_definition(array, axis_maps, orders))
    assert set(np.unique(result)) <= set(np.unique(array))


def test_label_shifts_by_fractions_of_a_voxel() -> None:
    array = np.random.default_rng(3).integers(0, 5, (6, 7, 8))
    axis_maps = [AxisMap(6, 9, 0.8, -1.3), AxisMap(7, 7, 1, 0.25), AxisMap(8, 3, 1, 2)]
    assert np.array_equal(
        resample_labels(array, axis_maps, (1, 1, 1)), labels_by_definition(array, axis_maps, (1, 1, 1))
    )


def test_ties_between_labels_follow_the_rule() -> None:
    """Half-way between two labels the nearest sample, which is the upper one, wins; else the smallest."""
    pair = np.array([[[5, 3]]])
    halfway = [AxisMap(1, 1, 1, 0), AxisMap(1, 1, 1, 0), AxisMap(2, 1, 1, 0.5)]
    assert resample_labels(pair, halfway, (1, 1, 1)).item() == 3
    assert resample_labels(pair[..., ::-1], halfway, (1, 1, 1)).item() == 5
    quad = np.array([[[5, 3], [3, 5]], [[4, 4], [9, 8]]])  # 3, 4 and 5 tie; the nearest sample, 8, does not
    middle = [AxisMap(2, 1, 1, 0.5)] * 3
    assert resample_labels(quad, middle, (1, 1, 1)).item() == 3


def test_labels_keep_leading_axes_and_booleans() -> None:
    array = np.random.default_rng(0).integers(0, 3, (1, 4, 5, 6)).astype(np.uint8)
    axis_maps = maps((4, 5, 6), (6, 7, 5))
    result = resample_labels(array, axis_maps, (3, 3, 3))
    assert np.array_equal(result[0], resample_labels(array[0], axis_maps, (1, 1, 1)))
    assert resample_labels(array == 1, axis_maps, (1, 1, 1)).dtype == bool


@pytest.mark.parametrize(
    ("current", "new", "expected"),
    [
        ((1, 1, 1), (1, 1, 1), (3, 3, 3)),
        ((1, 1, 3), (1, 1, 1), (3, 3, 3)),  # three times is not more than three times
        ((1, 1, 3.1), (1, 1, 1), (3, 3, 0)),
        ((5, 1, 1), (1, 1, 1), (0, 3, 3)),
        ((1, 1, 1), (1, 5, 1), (3, 0, 3)),
        ((5, 1, 5), (1, 1, 9), (3, 3, 3)),  # two thick axes: neither, and the second spacing is not asked
        ((1, 1, 5), (5, 1, 1), (3, 3, 0)),
        ((1, 1, 3.0000001), (1, 1, 1), (3, 3, 3)),
        ((5, 1, 5.0000001), (1, 1, 1), (3, 3, 3)),
    ],
)
def test_thick_slices(current: Any, new: Any, expected: tuple[int, ...]) -> None:
    assert axis_orders(3, current, new) == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 1, 3]))
def test_matrices_keep_constants_and_are_shared_safely(n_in: int, n_out: int, order: int) -> None:
    matrix = axis_matrix(AxisMap.resize(n_in, n_out), order)
    assert matrix.shape == (n_out, n_in)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-9)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 7


def test_nearest_breaks_ties_upwards() -> None:
    assert axis_matrix(AxisMap.resize(4, 3), 0).argmax(axis=1).tolist() == [0, 2, 3]
    assert axis_matrix(AxisMap.resize(4, 2), 0).argmax(axis=1).tolist() == [1, 3]
    assert axis_matrix(AxisMap.resize(2, 5), 0).argmax(axis=1).tolist() == [0, 0, 1, 1, 1]


def test_memory_of_long_axes_stays_near_that_of_the_arrays() -> None:
    array = np.zeros((512, 512, 4), dtype=np.float32)
    array[100:200, 100:200] = 1
    axis_maps = maps(array.shape, (400, 400, 4))
    resample(array, axis_maps, (3, 3, 3))  # builds the matrices
    tracemalloc.start()
    result = resample(array, axis_maps, (3, 3, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.nbytes < peak < 6 * array.nbytes
