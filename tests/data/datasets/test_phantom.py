"""Phantoms: exact labels, plausible intensities, the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data.datasets.phantom import PHANTOM_LABELS, phantom_case, write_phantoms
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.errors import DataError
from medseg.volumes.grid import world_positions


@pytest.mark.parametrize("modality", ["ct", "mr"])
@pytest.mark.parametrize("seed", [0, 1, (5, 2)])
def test_image_and_label_share_a_grid_and_hold_every_organ(modality, seed):
    image, label = phantom_case(seed, modality)
    assert image.grid == label.grid
    assert image.data.dtype == (np.int16 if modality == "ct" else np.float32)
    assert label.data.dtype == np.uint8
    assert label.is_label
    counts = np.bincount(label.data.ravel(), minlength=len(PHANTOM_LABELS))
    assert len(counts) == len(PHANTOM_LABELS)
    assert counts.min() > 150


def test_without_obliqueness_the_array_is_ras_of_the_given_shape():
    image, _ = phantom_case(0, shape=(24, 20, 10), spacing=(2, 3, 4), oblique=False)
    assert image.data.shape == (1, 24, 20, 10)
    assert image.grid.axcodes == "RAS"
    assert np.count_nonzero(image.grid.affine[:3, :3]) == 3
    np.testing.assert_allclose(image.spacing, (2, 3, 4))


def test_oblique_scans_are_stored_in_many_orientations():
    grids = [phantom_case(seed, shape=(12, 11, 10))[0].grid for seed in range(20)]
    assert len({grid.axcodes for grid in grids}) >= 4
    assert all(np.count_nonzero(grid.affine[:3, :3]) == 9 for grid in grids)
    assert all(grid.shear < 1e-3 for grid in grids)
    for grid in grids:
        np.testing.assert_allclose(grid.reoriented("RAS").spacing, (1.2, 1.2, 2.5), atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_organs_have_their_anatomical_positions(seed):
    _, label = phantom_case(seed)
    places = np.moveaxis(np.indices(label.grid.shape), 0, -1)

    def centre(name: str) -> np.ndarray:
        return world_positions(
            label.grid.affine, places[label.data[0] == PHANTOM_LABELS.value_of(name)]
        ).mean(0)

    right, _, superior = range(3)
    assert centre("right_kidney")[right] > centre("spine")[right] > centre("left_kidney")[right]
    assert centre("liver")[right] > centre("spleen")[right]
    assert centre("liver")[superior] > centre("right_kidney")[superior]


def test_ct_is_in_hounsfield_units():
    image, label = phantom_case(2, "ct")
    means = [image.data[label.data == value].mean() for value in PHANTOM_LABELS.values]
    assert 60 < means[PHANTOM_LABELS.value_of("liver")] < 150
    assert means[PHANTOM_LABELS.value_of("spine")] > 200
    assert image.data.min() < -950


def test_mr_has_its_own_scale_and_a_bias_field():
    scales = [np.percentile(phantom_case(seed, "mr", (20, 18, 10))[0].data, 99) for seed in range(8)]
    assert max(scales) > 2 * min(scales)


def test_cases_differ_and_repeat():
    first, again, other = (phantom_case(seed)[0].reoriented("RAS") for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.data, again.data)
    assert first.grid == again.grid
    assert not np.array_equal(first.data, other.data)


def test_unknown_modality():
    with pytest.raises(DataError, match="expected 'ct' or 'mr'"):
        phantom_case(0, "pet")  # type: ignore[arg-type]


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_written_dataset_reads_back(tmp_path, modality):
    dataset = write_phantoms(tmp_path, 3, modality, seed=4, shape=(24, 20, 12))
    assert dataset.ids == ("phantom_000", "phantom_001", "phantom_002")
    assert dataset.channel_names == (modality.upper(),)
    assert dataset.labels is not None
    assert dataset.labels.names == PHANTOM_LABELS.names
    image, label = phantom_case((4, 1), modality, shape=(24, 20, 12))
    np.testing.assert_array_equal(read_case_image(dataset.case("phantom_001")).data, image.data)
    np.testing.assert_array_equal(
        read_case_label(dataset.case("phantom_001"), PHANTOM_LABELS).data, label.data
    )


def test_same_arguments_give_the_same_bytes(tmp_path):
    def content() -> dict[str, bytes]:
        write_phantoms(tmp_path, 2, shape=(16, 14, 8))
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    assert len(before) == 5
    assert content() == before


def test_another_dataset_is_not_overwritten(tmp_path):
    write_phantoms(tmp_path, 1, "ct", shape=(16, 14, 8))
    with pytest.raises(DataError, match="found another dataset"):
        write_phantoms(tmp_path, 1, "mr", shape=(16, 14, 8))
