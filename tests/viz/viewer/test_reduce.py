from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from medseg.viz.viewer.reduce import fitting_factors, packed_nifti, reduce_image, reduce_labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

OBLIQUE = np.array([[0.9, -0.3, 0.1, 5], [0.3, 0.9, 0.2, -7], [-0.2, -0.1, 2.5, 11], [0, 0, 0, 1]])


def noise(shape: tuple[int, int, int], dtype: type = np.int16) -> Volume:
    data = np.random.default_rng(0).normal(0, 300, (1, *shape)).astype(dtype)
    return Volume(data, Grid(shape, OBLIQUE))


def unpacked(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_packed_voxels_and_affine_are_exact(dtype: type) -> None:
    image = noise((5, 6, 7), np.float64)
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(np.float32)
    data = image.data[0].astype(dtype)
    data[0, 0, 0], data[1, 1, 1] = limits.min, limits.max
    file = unpacked(packed_nifti(data, image.grid))
    np.testing.assert_array_equal(np.asarray(file.dataobj, np.float64), data.astype(np.float64))
    np.testing.assert_allclose(file.affine, OBLIQUE, rtol=1e-6)


def test_whole_numbers_take_the_smallest_type() -> None:
    image = noise((5, 6, 7), np.float64)
    whole = np.rint(image.data[0])
    assert unpacked(packed_nifti(whole, image.grid)).get_data_dtype() == np.int16
    assert unpacked(packed_nifti(whole * 0, image.grid)).get_data_dtype() == np.uint8


def test_rounded_fractions_are_close() -> None:
    data = noise((20, 20, 20), np.float32).data[0] / 7
    file = unpacked(packed_nifti(data, Grid.from_spacing(data.shape), rounded=True))
    assert file.get_data_dtype() == np.uint16
    step = float(data.max() - data.min()) / 65535
    np.testing.assert_allclose(np.asarray(file.dataobj, np.float64), data, atol=0.51 * step)


def test_colours_are_kept_in_order() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 1, 3)).astype(np.uint8)
    file = unpacked(packed_nifti(pixels, Grid.from_spacing((4, 3, 1))))
    stored = np.asarray(file.dataobj)
    np.testing.assert_array_equal(np.stack([stored["R"], stored["G"], stored["B"]], -1), pixels)


def test_the_file_names_nothing() -> None:
    image = noise((5, 6, 7))
    header = unpacked(packed_nifti(image.data[0], image.grid)).header
    assert [header[key].item() for key in ("descrip", "aux_file", "intent_name", "db_name")] == [b""] * 4
    assert packed_nifti(image.data[0], image.grid) == packed_nifti(image.data[0], image.grid)


def test_an_image_that_fits_is_not_reduced() -> None:
    image = noise((20, 18, 16))
    assert fitting_factors(image, 10**6) == (1, 1, 1)
    assert reduce_image(image, (1, 1, 1)) is image


def test_the_smallest_voxels_are_reduced_first_until_the_image_fits() -> None:
    image = noise((64, 60, 40))
    whole = len(packed_nifti(image.data[0], image.grid))
    factors = fitting_factors(image, whole // 5)
    assert factors[2] == 1  # its voxels are the longest
    small = reduce_image(image, factors)
    assert len(packed_nifti(small.data[0], small.grid)) < whole // 5 * 1.2


def test_a_reduced_voxel_is_the_mean_at_the_centre_of_its_block() -> None:
    image = noise((6, 4, 5), np.float32)
    small = reduce_image(image, (2, 1, 3))
    assert small.grid.shape == (3, 4, 2)
    np.testing.assert_allclose(small.data[0, 1, 2, 0], image.data[0, 2:4, 2, 0:3].mean(), rtol=1e-6)
    centre = OBLIQUE[:3, :3] @ (2.5, 2, 1) + OBLIQUE[:3, 3]
    np.testing.assert_allclose(small.grid.affine @ (1, 2, 0, 1), (*centre, 1))
    last = image.data[0, 0:2, 0, [3, 4, 4]].mean()  # the last voxel is repeated
    np.testing.assert_allclose(small.data[0, 0, 0, 1], last, rtol=1e-6)


def test_reduced_labels_keep_their_values_and_the_grid_of_the_image() -> None:
    image = noise((7, 5, 6))
    labels = Volume((image.data > 0).astype(np.uint8) * 7, image.grid, "label")
    small = reduce_labels(labels, (3, 2, 2))
    assert small.grid.shape == reduce_image(image, (3, 2, 2)).grid.shape
    assert set(np.unique(small.data)) == {0, 7}
    assert small.data[0, 1, 1, 1] == labels.data[0, 4, 3, 3]
