from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import DataError
from medseg.io.files import read, read_grid, write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.volumes import ORIENTATIONS

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([0.7, 0.8, 2.5]), [-90.1, 12.3, 456.7]
)
TO_RAS = np.diag([-1, -1, 1, 1])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_same_voxels_and_grid_as_nifti_in_every_orientation(
    make_volume: Any, tmp_path: Path, codes: str, suffix: str
) -> None:
    volume = make_volume((4, 5, 6), affine=OBLIQUE, dtype="i2").reoriented(codes)
    write(volume, tmp_path / f"a{suffix}")
    write(volume, tmp_path / "a.nii")
    other, nifti = read(tmp_path / f"a{suffix}"), read(tmp_path / "a.nii")
    assert np.array_equal(other.data, volume.data)
    assert other.data.dtype == np.int16
    assert other.data.flags.c_contiguous
    assert other.grid.axcodes == codes
    assert other.grid.distance(volume.grid) < 1e-6
    assert other.grid.matches(nifti.grid)
    assert read_grid(tmp_path / f"a{suffix}") == other.grid


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "AIL"])
def test_positions_agree_with_simpleitk(make_volume: Any, tmp_path: Path, codes: str) -> None:
    """Two independent libraries put the same voxels at the same place."""
    volume = make_volume((4, 5, 6), affine=OBLIQUE, dtype="i2").reoriented(codes)
    write(volume, tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for index in [(0, 0, 0), (3, 0, 0), (1, 3, 2), (3, 2, 3)]:
        assert image.GetPixel(*index) == volume.data[(0, *index)]
        point = np.array([*image.TransformIndexToPhysicalPoint(index), 1])
        np.testing.assert_allclose(TO_RAS @ point, volume.grid.affine @ [*index, 1], atol=1e-4)
    sitk.WriteImage(image, str(tmp_path / "b.nrrd"))
    assert read(tmp_path / "b.nrrd").grid.distance(volume.grid) < 1e-3


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4"])
@pytest.mark.parametrize("channels", [1, 2])
def test_types_and_channels_round_trip(
    make_volume: Any, tmp_path: Path, suffix: str, dtype: str, channels: int
) -> None:
    volume = make_volume((4, 3, 2), dtype=dtype, channels=channels)
    write(volume, tmp_path / f"a{suffix}")
    again = read(tmp_path / f"a{suffix}").data
    assert np.array_equal(again, volume.data)
    assert again.dtype == volume.data.dtype


@pytest.mark.parametrize(("dtype", "stored"), [(bool, "u1"), ("f2", "f4"), ("f8", "f4"), (">i2", "i2")])
def test_unsupported_types_are_converted_to_the_nearest(
    make_volume: Any, tmp_path: Path, dtype: Any, stored: str
) -> None:
    volume = make_volume(dtype=dtype)
    write(volume, tmp_path / "a.nrrd")
    again = read(tmp_path / "a.nrrd").data
    assert again.dtype == np.dtype(stored)
    assert np.array_equal(again, volume.data.astype(stored))


@pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 1, 1)])
def test_single_slice_round_trips(make_volume: Any, tmp_path: Path, shape: Any) -> None:
    volume = make_volume(shape, affine=OBLIQUE)
    write(volume, tmp_path / "A B ü.NRRD")
    again = read(tmp_path / "A B ü.NRRD")
    assert np.array_equal(again.data, volume.data)
    assert again.grid.distance(volume.grid) < 1e-6


def test_sheared_grid_raises_and_leaves_no_file(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    with pytest.raises(
        DataError, match=r"a\.nrrd: the grid is sheared, which \.nrrd cannot store\. Write \.nii\.gz"
    ):
        write(Volume(np.zeros((1, 2, 2, 2), np.uint8), Grid((2, 2, 2), sheared)), tmp_path / "a.nrrd")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(
    make_volume: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make_volume(), tmp_path / "a.mha")
    before = (tmp_path / "a.mha").read_bytes()

    def fail(image: Any, name: str, **_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("ITK ERROR\nfile cannot be written")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(DataError, match=r"a\.mha: cannot be written \(file cannot be written\)"):
        write(make_volume(), tmp_path / "a.mha")
    assert (tmp_path / "a.mha").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mha"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".png"])
def test_damaged_files_raise_with_the_file_name(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 22, 20), dtype=np.uint8)
    path = tmp_path / f"broken{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(noise[0] if suffix == ".png" else noise), str(path))
    content = path.read_bytes()
    for bad in (content[: len(content) // 2], b"", b"hello world" * 50):
        path.write_bytes(bad)
        cut = bad and content.startswith(bad) and suffix != ".png"
        message = "the voxels end early: found .*Copy" if cut else "not readable .*Copy the file again"
        with pytest.raises(DataError, match=rf"broken{suffix}: {message}"):
            read(path)
    with pytest.raises(DataError, match=r"absent\.nrrd: no such file"):
        read(tmp_path / "absent.nrrd")


def test_complex_and_4d_images_raise(tmp_path: Path) -> None:
    pair = sitk.RealAndImaginaryToComplex(*[sitk.Image(4, 4, 4, sitk.sitkFloat32)] * 2)
    sitk.WriteImage(pair, str(tmp_path / "c.nrrd"))
    with pytest.raises(DataError, match=r"c\.nrrd: found complex voxels, expected real numbers"):
        read(tmp_path / "c.nrrd")
    sitk.WriteImage(sitk.Image([3, 3, 3, 3], sitk.sitkUInt8), str(tmp_path / "d.mha"))
    with pytest.raises(DataError, match=r"d\.mha: found 4 dimensions, expected 2 or 3"):
        read(tmp_path / "d.mha")


# --- DICOM ---------------------------------------------------------------------------------------------
