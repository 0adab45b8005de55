"""Properties of labels: volume, components, border, extent and intensity."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.inference.quality.image_features import IntensitySample
from medseg.inference.quality.label_features import label_features
from medseg.labels.label_table import Labels, Region
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

GRID = Grid.from_spacing((20, 16, 12), (1, 1, 2))
LABELS = Labels.from_names({"liver": 5, "spleen": 7, "tumour": 300})


@pytest.fixture
def label_map():
    data = np.zeros(GRID.shape, np.uint16)
    data[2:8, 2:8, 2:8] = 5
    data[12, 12, 10] = 5
    data[10:, :4, :4] = 7
    return Volume(data[None], GRID, "label")


def test_labels_are_measured(label_map):
    found = label_features(label_map, LABELS, None, ())
    assert found["empty"] == {"liver": 0, "spleen": 0, "tumour": 1}
    assert found["volume"] == pytest.approx({"liver": 217 * 2 / 1000, "spleen": 160 * 2 / 1000})
    assert found["components"] == {"liver": 2, "spleen": 1}
    inner = 9 * 3 * 3  # of 10 x 4 x 4 voxels in a corner
    assert found["border"] == pytest.approx({"liver": 0, "spleen": 1 - inner / 160})
    assert "intensity" not in found


def test_the_extent_of_a_cube_is_that_of_a_uniform_distribution():
    data = np.zeros(GRID.shape, np.uint8)
    data[:12, :12, :6] = 5
    found = label_features(Volume(data[None], GRID, "label"), LABELS, None, ())
    variance = 2 * (12**2 - 1) / 12 + 4 * (6**2 - 1) / 12
    assert found["extent"]["liver"] == pytest.approx(np.sqrt(variance) / 12, rel=1e-5)


def test_the_intensity_is_the_mean_rank_in_each_channel(label_map):
    bright = np.zeros((2, *GRID.shape), np.float32)
    bright[0] = np.random.default_rng(0).permutation(GRID.shape[0] * 192).reshape(GRID.shape)
    bright[1] = np.where(label_map.data[0] == 7, 9, 0)
    sample = IntensitySample.from_image(Volume(bright, GRID))
    found = label_features(label_map, LABELS, sample, ("T1", "T2"))["intensity"]
    assert set(found) == {"liver in T1", "liver in T2", "spleen in T1", "spleen in T2"}
    assert found["spleen in T2"] == pytest.approx(1 - 80 / 3840, abs=0.001)
    assert found["liver in T1"] == pytest.approx(0.5, abs=0.1)


def test_regions_are_unions_of_labels(label_map):
    labels = Labels(
        LABELS.items[:3],
        (Region("both", (5, 7), 5, (0, 0, 0)), Region("spleen only", (7,), 7, (0, 0, 0))),
    )
    found = label_features(label_map, labels, None, ())
    assert found["volume"]["both"] == pytest.approx(377 * 2 / 1000)
    assert found["components"]["both"] == 3


def test_a_single_slice_is_not_at_the_border_along_its_axis():
    data = np.zeros((1, 20, 16, 1), np.uint8)
    data[0, 4:9, 4:9] = 5
    found = label_features(Volume(data, Grid.from_spacing((20, 16, 1), (1, 1, 1)), "label"), LABELS, None, ())
    assert found["border"]["liver"] == 0


def test_labels_with_values_of_nine_digits_are_measured_like_others(label_map):
    large = Labels.from_names({"liver": 5, "spleen": 614454277, "tumour": 614454278})
    data = label_map.data.astype(np.int32)
    data[data == 7] = 614454277
    found = label_features(label_map.with_data(data), large, None, ())
    assert found == label_features(label_map, LABELS, None, ())
