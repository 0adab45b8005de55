"""Headers that contradict themselves: what is used, what is reported once, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError, DataWarning
from medseg.io.files import read, read_grid, read_labels, write
from medseg.io.nifti.orientation_sources import ORIENTATION_SOURCES
from tests.helpers.nifti_files import OBLIQUE, patched, save

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
PLAIN = np.diag([1.0, 1.0, 2.0, 1.0])


def two_forms(path: Path, sform: Any, qform: Any, data: Any = VOXELS) -> Path:
    image = nib.Nifti1Image(data, sform)
    image.set_qform(qform, code=1)
    image.set_sform(sform, code=1)
    nib.save(image, path)
    return path


def shifted(distance: float) -> Any:
    affine = PLAIN.copy()
    affine[0, 3] = distance
    return affine


def header_of(path: Path) -> Any:
    return nib.load(path).header


def read_quietly(path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(path, **options)


def test_forms_that_differ_are_reported_once_and_not_written_again(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "a.nii.gz", shifted(10), PLAIN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read(path)
        read(path)
        read_grid(path)
        read_labels(path)
    assert [str(one.message) for one in caught] == [
        f"{path}: sform and qform: found first voxels at (10, 0, 0) and (0, 0, 0) mm, corners up to 10 mm apart, expected the "
        "same place. The sform is used; correct the wrong one, or choose with --orientation-from (data.orientation_from in a config)."
    ]
    np.testing.assert_array_equal(volume.grid.affine, shifted(10))
    write(volume.with_data(np.ones((1, 4, 5, 6), np.uint8), "label"), tmp_path / "b.nii.gz")
    header = header_of(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(header.get_qform(), shifted(10))
    np.testing.assert_allclose(header.get_sform(), shifted(10))
    read_quietly(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("distance", [0.001, 0.04])
def test_forms_that_differ_by_rounding_are_one(tmp_path: Path, distance: float) -> None:
    path = two_forms(tmp_path / "a.nii", shifted(distance), PLAIN)
    volume = read_quietly(path)
    write(volume, tmp_path / "b.nii")
    assert header_of(tmp_path / "b.nii")["qoffset_x"] == 0  # bit for bit


@pytest.mark.parametrize(("source", "x"), [("sform", 10), ("qform", 0)])
def test_the_user_chooses_between_the_forms(tmp_path: Path, source: Any, x: float) -> None:
    path = two_forms(tmp_path / "a.nii", shifted(10), PLAIN)
    volume = read_quietly(path, orientation_from=source)
    assert volume.grid.affine[0, 3] == x
    write(volume, tmp_path / "b.nii")
    np.testing.assert_allclose(header_of(tmp_path / "b.nii").get_qform()[0, 3], x)
    np.testing.assert_allclose(header_of(tmp_path / "b.nii").get_sform()[0, 3], x)


@pytest.mark.parametrize("flip", [(-1, 1, 1), (1, 1, -1), (-1, -1, 1)])
def test_forms_with_opposite_axes_are_a_guess(tmp_path: Path, flip: Any) -> None:
    path = two_forms(tmp_path / "a.nii", PLAIN @ np.diag([*flip, 1.0]), PLAIN)
    codes = read(path, orientation_from="sform").grid.axcodes
    with pytest.raises(
        DataError, match=rf"a\.nii: sform and qform: found axes {codes} and RAS, .*guess.*--orientation-from"
    ):
        read(path)
    assert read(path, orientation_from="qform").grid.axcodes == "RAS"


def test_without_a_code_the_user_must_choose(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", VOXELS, OBLIQUE, qform=0, sform=0)
    for reader in (read, read_grid, read_labels):
        with pytest.raises(
            DataError, match=r"qform_code and sform_code: found 0 and 0, .*--orientation-from .*pixdim"
        ):
            reader(path)
    volume = read_quietly(path, orientation_from="pixdim")
    np.testing.assert_allclose(volume.grid.affine, np.diag([0.7, 0.8, 2.5, 1]), rtol=1e-6)
    write(volume, tmp_path / "b.nii.gz")
    np.testing.assert_allclose(read_quietly(tmp_path / "b.nii.gz").grid.affine, volume.grid.affine, rtol=1e-6)


@pytest.mark.parametrize("source", ["sform", "qform"])
def test_a_form_whose_code_was_lost_can_be_chosen(tmp_path: Path, source: Any) -> None:
    path = two_forms(tmp_path / "a.nii", OBLIQUE, OBLIQUE)
    patched(path, 252, np.array([0, 0], "<i2").tobytes())
    np.testing.assert_allclose(
        read_quietly(path, orientation_from=source).grid.affine, OBLIQUE, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("source", ORIENTATION_SOURCES)
def test_a_choice_does_not_change_files_that_need_none(tmp_path: Path, source: Any) -> None:
    for codes in ((1, 0), (0, 1), (1, 1)):
        path = save(tmp_path / f"{codes[0]}{codes[1]}.nii", VOXELS, OBLIQUE, qform=codes[0], sform=codes[1])
        chosen = read_quietly(path, orientation_from=source).grid
        assert chosen.matches(read_quietly(path).grid)


def test_other_voxel_sizes_in_pixdim_are_reported(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS, np.diag([0.8, 0.8, 5, 1]), qform=0, sform=2)
    patched(path, 80, np.array([1, 1, 1], "<f4").tobytes())
    with pytest.warns(
        DataWarning,
        match=r"voxel size: found 1x1x1 in pixdim and 0.8x0.8x5 in the sform, expected the same voxel sizes\. The sform is used",
    ):
        volume = read(path)
    assert volume.spacing == pytest.approx((0.8, 0.8, 5))
    write(volume, tmp_path / "b.nii")
    assert header_of(tmp_path / "b.nii").get_zooms() == pytest.approx((0.8, 0.8, 5))
    assert read_quietly(path, orientation_from="pixdim").spacing == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("size", [0.0, -2.0, np.nan])
def test_voxel_sizes_that_are_none(tmp_path: Path, size: float) -> None:
    pixdim = np.array([size], "<f4").tobytes()
    by_qform = patched(save(tmp_path / "q.nii", VOXELS, PLAIN, qform=1, sform=0), 84, pixdim)
    with pytest.raises(DataError, match=r"q\.nii: pixdim\[2\]: found .*, expected a voxel size above 0"):
        read(by_qform)
    alone = patched(save(tmp_path / "p.nii", VOXELS, PLAIN, qform=0, sform=0), 84, pixdim)
    with pytest.raises(DataError, match=r"p\.nii: pixdim\[2\]: found .*, expected a voxel size above 0"):
        read(alone, orientation_from="pixdim")
    by_sform = patched(save(tmp_path / "s.nii", VOXELS, PLAIN, qform=0, sform=1), 84, pixdim)
    with pytest.warns(DataWarning, match=r"voxel size: found 1x.*x2 in pixdim"):
        assert read(by_sform).spacing == (1, 1, 2)


def test_an_axis_that_a_slice_does_not_have_needs_no_voxel_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS[..., 0], PLAIN, qform=1, sform=0)
    patched(path, 88, bytes(4))
    assert read_quietly(path).spacing == (1, 1, 1)


def test_a_qform_that_is_no_rotation(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "a.nii", PLAIN, PLAIN)
    patched(path, 256, np.array([2, 2, 2], "<f4").tobytes())
    with pytest.warns(
        DataWarning,
        match=r"qform: found no rotation \(quaternion 2, 2, 2\), expected a length of at most 1\. The sform is used",
    ):
        read(path)
    patched(path, 254, bytes(2))
    with pytest.raises(DataError, match=r"qform: found quaternion 2, 2, 2, expected one of length at most 1"):
        read(path)


@pytest.mark.filterwarnings("ignore:.*from a right angle:medseg.errors.DataWarning")
@pytest.mark.parametrize("shear", [0.1, 0.7, -2.0])
def test_a_qform_without_the_shear_of_the_sform_is_no_contradiction(tmp_path: Path, shear: float) -> None:
    affine = np.array([[1.0, shear, 0, 5], [0, 2, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((6, 7, 8), np.int16), affine), tmp_path / "a.nii")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        np.testing.assert_allclose(read(tmp_path / "a.nii").grid.affine, affine, atol=1e-6)
    assert not [one for one in told if "qform" in str(one.message)]
