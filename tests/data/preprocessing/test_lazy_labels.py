"""Label maps made slice by slice equal those made whole; classes become channels."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from medseg.data.patches.first_stage_channels import append_one_hot
from medseg.data.preprocessing.lazy_labels import LabelSlices
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing, label_slices, prepare, prepare_label
from medseg.volumes.resampling import AxisMap, axis_orders, resample_labels


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Labels 0, 1, 2 and 7 in smooth regions."""
    rng = np.random.default_rng(seed)
    waves = np.meshgrid(*[np.sin(np.arange(n) / rng.uniform(1, 3)) for n in shape], indexing="ij")
    return np.array([0, 1, 2, 7], np.uint8)[np.digitize(sum(waves), [-0.8, 0.3, 1.1])]


@pytest.mark.parametrize(
    "sizes", [(9, 12, 20), (13, 8, 41), (13, 12, 20), (5, 4, 7), (13, 12, 10), (13, 30, 60)]
)
@pytest.mark.parametrize("orders", [(1, 1, 1), (1, 1, 0), (0, 1, 1)])
def test_slices_equal_the_whole(sizes, orders):
    data = blobs((13, 12, 20))
    maps = [AxisMap.resize(n, m) for n, m in zip(data.shape, sizes, strict=True)]
    whole = resample_labels(data, maps, orders)
    made = LabelSlices(data, maps, orders)
    assert made.shape == (sizes[2], *sizes[:2])
    assert np.array_equal(np.moveaxis(made.slices(0, sizes[2]), 0, -1), whole)
    for first in range(0, sizes[2], 3):  # in pieces that begin anywhere
        last = min(first + 5, sizes[2])
        assert np.array_equal(np.moveaxis(made.slices(first, last), 0, -1), whole[..., first:last])


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SRA", "AIL"])
@pytest.mark.parametrize("spacing", [None, (1.7, 1.1, 2.9), (None, 4.0, None), (1.0, 1.0, 6.0)])
def test_a_map_is_prepared_as_the_label_is(make_volume, axcodes, spacing):
    """Turned, cropped and resampled alike, also of a file in another orientation than its image."""
    image = make_volume((14, 12, 10), spacing=(1.0, 1.25, 2.0))
    data = image.data.copy()
    data[:, :2] = data[:, :, 9:] = 0
    image = image.with_data(data).reoriented(axcodes)
    label = image.with_data(blobs(image.grid.shape)[None], "label")
    settings = Preprocessing.parse({"spacing": spacing, "channels": [Normalization()]})
    prepared = prepare(image, settings)
    made = label_slices(label, prepared, settings)
    cropped = label.reoriented(settings.axcodes(label.grid)).cropped(prepared.start, prepared.shape)
    maps = [AxisMap.resize(n, m) for n, m in zip(cropped.grid.shape, prepared.grid.shape, strict=True)]
    orders = axis_orders(1, cropped.spacing, settings.target_spacing(cropped.spacing))
    whole = resample_labels(cropped.data, maps, orders)
    assert np.array_equal(prepare_label(label, prepared, settings).data, whole)
    assert prepared.start != (0, 0, 0)
    assert np.array_equal(np.moveaxis(made.slices(0, made.shape[0]), 0, -1), whole[0])
    assert made.shape[0] == whole.shape[3]


@pytest.mark.parametrize("depth", [16, 40])
def test_a_label_map_is_prepared_with_eight_bytes_per_voxel(make_volume, depth):
    image = make_volume((60, 60, depth), spacing=(1.5, 1.5, 1.5))
    label = image.with_data(blobs(image.grid.shape)[None], "label")
    settings = Preprocessing.parse({"spacing": (1.0, 1.0, 1.0), "channels": [Normalization()]})
    prepared = prepare(image, settings)
    prepare_label(label, prepared, settings)  # matrices that are kept
    tracemalloc.start()
    try:
        found = prepare_label(label, prepared, settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * found.data.size


def test_classes_become_channels_in_rising_order():
    image = torch.randn(2, 3, 4, 5, 6)
    image[:, -1] = torch.randint(0, 4, (2, 4, 5, 6))
    seen = append_one_hot(image, 3)
    assert seen.shape == (2, 5, 4, 5, 6)
    assert torch.equal(seen[:, :2], image[:, :2])
    for label in (1, 2, 3):
        assert torch.equal(seen[:, 1 + label], (image[:, -1] == label).float())
