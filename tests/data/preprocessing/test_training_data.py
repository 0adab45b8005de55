from __future__ import annotations

import numpy as np
import pytest

from medseg.data.datasets.dataset_json import parse_labels
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.preprocessing.training_data import (
    ImageMeasures,
    TrainingData,
    annotated_volumes,
    measure_image,
)
from medseg.data.preprocessing.unlike_training import image_deviations
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.conftest import MakeVolume

RAS = Preprocessing()


def test_sizes_are_those_of_the_axes_of_the_model(make_volume: MakeVolume) -> None:
    image = make_volume((7, 6, 5), spacing=(1.0, 1.25, 2.0))
    turned = image.reoriented("SLP")
    expected = measure_image(image, RAS)
    assert (expected.spacing, expected.extent) == ((1.0, 1.25, 2.0), (7.0, 7.5, 10.0))
    assert measure_image(turned, RAS) == expected
    as_in_file = measure_image(turned, RAS.replace(orientation=None))
    assert as_in_file.spacing == (2.0, 1.0, 1.25)


def test_intensities_are_percentiles_of_each_channel() -> None:
    data = np.stack([np.arange(1000), -2.0 * np.arange(1000)]).reshape(2, 10, 10, 10).astype(np.float32)
    found = measure_image(Volume(data, Grid.from_spacing((10, 10, 10))), RAS.replace(channels=[{}, {}]))
    assert found.low == pytest.approx((4.995, -1988.01), abs=0.01)
    assert found.high == pytest.approx((994.005, -9.99), abs=0.01)


def test_large_images_are_sampled_and_voxels_that_are_not_finite_left_out() -> None:
    data = np.full((1, 200, 150, 80), 3, np.float32)
    data[0, 0, 0, 0] = np.nan
    found = measure_image(Volume(data, Grid.from_spacing((200, 150, 80))), RAS)
    assert (found.low, found.high) == ((3.0,), (3.0,))


def test_natural_images_have_no_physical_size() -> None:
    grid = Grid((8, 8, 1), np.eye(4), in_pixels=True)
    found = measure_image(Volume(np.zeros((1, 8, 8, 1), np.uint8), grid), RAS)
    assert (found.spacing, found.extent) == (None, None)
    assert TrainingData.from_images([found]).spacing is None


def test_volumes_are_those_of_annotated_labels() -> None:
    labels = Labels.from_names({"background": 0, "liver": 1, "tumour": 5})
    values = np.array([0, 1, 1, 5, 5, 5])
    assert annotated_volumes(values, 500.0, labels) == {"liver": 1.0, "tumour": 1.5}
    assert annotated_volumes(values, 500.0, labels, ["tumour"]) == {"tumour": 1.5}


def test_volumes_of_regions() -> None:
    labels = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, "dataset.json", [1, 2])
    found = annotated_volumes(np.array([0, 1, 2, 2]), 1000.0, labels)
    assert found == {"whole": 3.0, "core": 2.0}


def test_ranges_over_images_and_over_folds() -> None:
    one = ImageMeasures(spacing=(1, 1, 2), extent=(9, 9, 8), low=(-5,), high=(70,), volumes_ml={"a": 3})
    two = ImageMeasures(
        spacing=(1, 2, 1), extent=(9, 5, 8), low=(-9,), high=(50,), volumes_ml={"a": 1, "b": 7}
    )
    data = TrainingData.from_images([one, two])
    assert data.cases == 2
    assert data.spacing == ((1, 1), (1, 2), (1, 2))
    assert data.extent == ((9, 9), (5, 9), (8, 8))
    assert (data.channels[0].low, data.channels[0].high) == ((-9, -5), (50, 70))
    assert data.volumes_ml == {"a": (1, 3), "b": (7, 7)}
    parts = [TrainingData.from_images([image]) for image in (one, two)]
    assert TrainingData.union(parts) == data.replace(cases=1)
    unknown = data.replace(spacing=None)
    assert TrainingData.union([data, unknown]).spacing is None


def test_absent_channels_count_neither_for_ranges_nor_as_unlike() -> None:
    data = np.random.default_rng(0).normal(500, 50, (2, 8, 8, 8)).astype(np.float32)
    data[1] = 0
    image = Volume(data, Grid.from_spacing((8, 8, 8)), absent=(1,))
    settings = Preprocessing.parse({"channels": [{"method": "none"}] * 2})
    measures = measure_image(image, settings)
    assert measures.absent == (1,)
    complete = measures.replace(low=(400.0, 100.0), high=(600.0, 200.0), absent=())
    found = TrainingData.from_images([complete, measures])
    assert (found.channels[1].low, found.channels[1].high) == ((100.0, 100.0), (200.0, 200.0))
    assert not list(image_deviations(measures, found, settings, ("a", "b")))
    as_zeros = measures.replace(absent=())
    assert [one.field for one in image_deviations(as_zeros, found, settings, ("a", "b"))] == ["channel b"]
