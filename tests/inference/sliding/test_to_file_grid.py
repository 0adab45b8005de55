"""Logits to labels on the file's grid: slice by slice, the very map of interpolating everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data.datasets.phantom import phantom_case
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing, label_target, prepare, prepare_label
from medseg.inference.sliding import to_file_grid as export
from medseg.inference.sliding.labelling import Argmax
from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
from medseg.volumes.grid import Grid
from medseg.volumes.resampling import AxisMap, resample
from medseg.volumes.volume import Volume
from tests.helpers.sliding import blocks_of, interpolated, smooth_logits


@st.composite
def cases(draw):
    source = tuple(draw(st.integers(1, 9)) for _ in range(3))
    target = tuple(draw(st.integers(1, 14)) for _ in range(3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    return source, target, draw(st.integers(2, 6)), sizes, draw(st.sampled_from((0, 1.5)))


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 100))
def test_equals_interpolating_everything(case, seed):
    source, target, classes, sizes, sigma = case
    logits = smooth_logits(source, classes, seed, sigma)
    maps = [AxisMap.resize(n_in, n_out) for n_in, n_out in zip(source, target, strict=True)]
    dense = logits
    for axis in (0, 2, 1):
        dense = interpolated(dense, axis, maps[axis])
    values = np.arange(classes) * 3
    out = np.full(target, 255, np.uint8)
    export_labels(
        blocks_of(logits, sizes), [LinearWeights.from_axis_map(m) for m in maps], Argmax(values), out
    )
    np.testing.assert_array_equal(out, dense.argmax(-1).numpy() * 3)


@pytest.mark.parametrize("together", [1, 100, 1 << 18])
@pytest.mark.parametrize("target", [(9, 7, 5), (7, 6, 4)])
def test_voxels_on_network_voxels_are_not_interpolated(together, target, monkeypatch):
    """On the same grid, or a part of it that begins where it begins."""
    monkeypatch.setattr(export, "_VOXELS_AT_ONCE", together)
    logits = smooth_logits((9, 7, 5), classes=4, sigma=0)
    axes = [
        LinearWeights.from_axis_map(AxisMap(n_in, n_out, 1, 0))
        for n_in, n_out in zip(logits.shape[:3], target, strict=True)
    ]
    assert all(axis.is_identity for axis in axes)
    out = np.full(target, 255, np.uint8)
    export_labels(blocks_of(logits, [4, 3, 2]), axes, Argmax(np.arange(4)), out)
    np.testing.assert_array_equal(out, logits.argmax(-1).numpy()[tuple(slice(n) for n in target)])
    assert not LinearWeights.from_axis_map(AxisMap(5, 5, -1, 4)).is_identity
    assert not LinearWeights.from_axis_map(AxisMap(5, 4, 1, 1)).is_identity
    assert not LinearWeights.from_axis_map(AxisMap(5, 5, 1, 0.25)).is_identity


@pytest.mark.parametrize("target", [(20, 31, 26), (9, 8, 11), (13, 12, 10)])
def test_equals_the_resampling_of_every_class(target):
    logits = smooth_logits((13, 12, 10), 4)
    maps = [AxisMap.resize(n_in, n_out) for n_in, n_out in zip((13, 12, 10), target, strict=True)]
    out = np.empty(target, np.uint8)
    export_labels([logits], [LinearWeights.from_axis_map(m) for m in maps], Argmax(np.arange(4)), out)
    every = np.stack([resample(logits[..., c].numpy(), maps, (1, 1, 1)) for c in range(4)])
    ordered = np.sort(every, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(out[clear], every.argmax(0)[clear])


def restored(logits, prepared, preprocessing) -> Volume:
    """Labels of logits `(k, X, Y, Z)` on the file's grid."""
    target = label_target(prepared, preprocessing, np.uint16)
    blocks = torch.from_numpy(np.moveaxis(logits, 0, -1).copy()).split(3)
    rule = Argmax(np.arange(len(logits)))
    export_labels(blocks, [LinearWeights.from_axis_map(m) for m in target.maps], rule, target.view)
    return target.volume


def one_hot(label: Volume, classes: int) -> np.ndarray:
    return np.stack([label.data[0] == c for c in range(classes)]).astype(np.float32)


def dice(a, b, value) -> float:
    return 2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum())


@pytest.mark.parametrize("seed", range(4))
def test_prepared_and_restored_at_the_same_spacing_is_exact(seed):
    image, label = phantom_case(seed, "ct", (24, 20, 14), (14, 15, 18))
    preprocessing = Preprocessing(channels=(Normalization(),))
    prepared = prepare(image, preprocessing)
    assert prepared.image.grid.axcodes == "RAS"
    result = restored(one_hot(prepare_label(label, prepared, preprocessing), 6), prepared, preprocessing)
    assert result.grid == image.grid
    assert result.is_label
    np.testing.assert_array_equal(result.data, label.data)


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("spacing", [(4, 4, 6), (3.5, 4.5, 8)])
def test_prepared_and_restored_at_another_spacing_keeps_every_organ(orientation, spacing):
    image, label = phantom_case(1, "mr", (48, 42, 24), (6.5, 6.5, 10))
    preprocessing = Preprocessing(spacing=spacing, orientation=orientation)
    prepared = prepare(image, preprocessing)
    np.testing.assert_allclose(prepared.image.spacing, spacing, rtol=0.06)
    result = restored(one_hot(prepare_label(label, prepared, preprocessing), 6), prepared, preprocessing)
    assert result.grid == image.grid
    for value in range(6):
        assert dice(result.data, label.data, value) > 0.95, value


def test_margins_are_cut_and_come_back_as_background():
    image = Volume(np.ones((1, 4, 4, 4), np.int16), Grid.from_spacing((4, 4, 4), (1, 2, 3))).padded(
        (2, 0, 1), (0, 3, 0)
    )
    preprocessing = Preprocessing(channels=(Normalization(method="none"),))
    prepared = prepare(image, preprocessing)
    assert (prepared.start, prepared.shape) == ((2, 0, 1), (4, 4, 4))
    logits = np.stack([np.zeros((4, 4, 4)), np.ones((4, 4, 4))]).astype(np.float32)
    np.testing.assert_array_equal(restored(logits, prepared, preprocessing).data, image.data)


def test_more_than_256_classes_fit():
    image = Volume(np.ones((1, 2, 2, 2), np.float32), Grid.from_spacing((2, 2, 2)))
    logits = np.zeros((300, 2, 2, 2), np.float32)
    logits[299] = 1
    result = restored(logits, prepare(image, Preprocessing()), Preprocessing())
    assert set(result.data.ravel()) == {299}


def test_ties_go_to_the_first_class():
    image = Volume(np.ones((1, 2, 2, 2), np.float32), Grid.from_spacing((2, 2, 2)))
    prepared = prepare(image, Preprocessing())
    assert not restored(np.zeros((3, 2, 2, 2), np.float32), prepared, Preprocessing()).data.any()


def test_label_map_has_the_memory_order_of_a_file():
    image, _ = phantom_case(0, "ct", (12, 10, 8), (20, 22, 24))
    target = label_target(prepare(image, Preprocessing()), Preprocessing(), np.uint8)
    assert target.volume.data[0].flags.f_contiguous  # x fastest, z slowest
    assert np.shares_memory(target.view, target.volume.data)
