from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

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
        with pytest.raises(
            DataError, match=rf"broken{suffix}: not readable .*Copy the file again or convert it"
        ):
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


class Series:
    """A small CT series written slice by slice; fields may be changed before `save`."""

    def __init__(self, folder: Path, count: int = 5, *, tilt: float = 0.0, gap: float = 2.5) -> None:
        self.folder = folder
        self.array = np.random.default_rng(0).integers(-1000, 1000, (count, 6, 8)).astype(np.int16)
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        self.slices = []
        for index in range(count):
            one = Dataset()
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CTImageStorage
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
            one.Modality, one.InstanceNumber, one.PatientID = "CT", 77 - index, "x"
            one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            one.ImagePositionPatient = [-20.5, 10 + tilt * index, 100 + gap * index]
            one.PixelSpacing = [0.7, 0.9]  # between rows, between columns
            one.Rows, one.Columns = self.array.shape[1:]
            one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
            one.BitsAllocated = one.BitsStored = 16
            one.HighBit, one.PixelRepresentation = 15, 1
            one.RescaleSlope, one.RescaleIntercept = 1, -24
            one.PixelData = self.array[index].tobytes()
            self.slices.append(one)

    def save(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, one in enumerate(self.slices):
            one.save_as(self.folder / f"{(index * 7) % 100:02d}.dcm", enforce_file_format=True)
        return self.folder


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return Series(tmp_path / "se ries ü")


@pytest.mark.parametrize("tilt", [0.0, 0.8, -0.8])
def test_series_grid_comes_from_its_headers(tmp_path: Path, tilt: float) -> None:
    series = Series(tmp_path / "ct", tilt=tilt)
    volume = read(series.save())
    assert volume.data.shape == (1, 8, 6, 5)
    assert np.array_equal(volume.data[0], series.array.T - 24)
    columns = [[0.9, 0, 0], [0, 0.7, 0], [0, tilt, 2.5]]
    expected = nib.affines.from_matvec(np.array(columns).T, [-20.5, 10, 100])
    np.testing.assert_allclose(volume.grid.affine, TO_RAS @ expected, atol=1e-9)
    assert volume.grid.shear == pytest.approx(abs(tilt) / np.hypot(tilt, 2.5))
    write(volume, tmp_path / "a.nii.gz")
    assert read_grid(tmp_path / "a.nii.gz").matches(volume.grid)


def test_oblique_series_is_sorted_whatever_the_file_names(series: Series) -> None:
    turn = nib.eulerangles.euler2mat(0.2, 0.3, -0.4)
    for index, one in enumerate(series.slices):
        one.ImageOrientationPatient = [f"{value:.10f}" for value in turn[:, :2].T.ravel()]
        one.ImagePositionPatient = [f"{value:.10f}" for value in turn @ [1, 2, -3.0 * index]]
    volume = read(series.save())
    expected = nib.affines.from_matvec(turn @ np.diag([0.9, 0.7, 3]), turn @ [1, 2, -12])
    np.testing.assert_allclose(volume.grid.affine, TO_RAS @ expected, atol=1e-6)
    assert np.array_equal(volume.data[0], series.array[::-1].T - 24)


def test_series_written_by_simpleitk_is_read(tmp_path: Path, series: Series) -> None:
    image = sitk.ReadImage([str(path) for path in sorted(series.save().iterdir())])
    volume = read(series.folder)
    assert np.array_equal(volume.data[0], sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.spacing, image.GetSpacing())
    np.testing.assert_allclose((TO_RAS @ volume.grid.affine)[:3, 3], image.GetOrigin())


@pytest.mark.parametrize("slopes", [(1, 0.5, 0.25, 1, 2), (0.5, 1, 1, 1, 1), (1, 100, 1, 1, 1)])
def test_slices_are_rescaled_by_their_own_slope_and_intercept(
    series: Series, slopes: tuple[float, ...]
) -> None:
    for one, slope in zip(series.slices, slopes, strict=True):
        one.RescaleSlope = slope
    expected = series.array * np.array(slopes)[:, None, None] - 24
    np.testing.assert_allclose(read(series.save()).data[0], expected.T)


@pytest.mark.parametrize(
    ("tag", "thickness"), [("SpacingBetweenSlices", 3.0), ("SliceThickness", 5.0), (None, 1.0)]
)
def test_single_slice_spacing_is_its_thickness(tmp_path: Path, tag: str | None, thickness: float) -> None:
    series = Series(tmp_path / "ct", count=1)
    if tag:
        setattr(series.slices[0], tag, thickness)
    assert read(series.save()).spacing == pytest.approx((0.9, 0.7, thickness))


def test_rounded_positions_are_accepted_and_other_files_ignored(series: Series) -> None:
    for one, noise in zip(series.slices, [0, 4e-3, -4e-3, 2e-3, 0], strict=True):
        one.ImagePositionPatient[2] = float(one.ImagePositionPatient[2]) + noise
    (series.save() / "readme.txt").write_text("not a slice")
    (series.folder / "empty").write_text("")
    (series.folder / "below").mkdir()
    assert read(series.folder).spacing == pytest.approx((0.9, 0.7, 2.5))


def _missing(series: Series) -> None:
    del series.slices[2]


def _doubled(series: Series) -> None:
    series.slices[2].ImagePositionPatient = series.slices[3].ImagePositionPatient


def _all_at_one_place(series: Series) -> None:
    for one in series.slices:
        one.ImagePositionPatient = [0, 0, 0]


def _shifted(series: Series) -> None:
    series.slices[2].ImagePositionPatient[1] += 1.5


def _localizer(series: Series) -> None:
    series.slices[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def _other_pixels(series: Series) -> None:
    series.slices[3].PixelSpacing = [0.7, 0.8]


def _other_size(series: Series) -> None:
    series.slices[3].Rows = 3
    series.slices[3].PixelData = series.slices[3].PixelData[:48]


def _two_series(series: Series) -> None:
    series.slices[3].SeriesInstanceUID = generate_uid()


def _without(tag: str) -> Any:
    def change(series: Series) -> None:
        delattr(series.slices[1], tag)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_missing, r"uneven gaps between slices: found 2\.500 to 5\.000 mm, expected 2\.500 mm .*export"),
        (_doubled, r"uneven gaps between slices: found 0\.000 to"),
        (_all_at_one_place, r"uneven gaps between slices: found 0\.000 to 0\.000"),
        (_shifted, r"slices are shifted sideways against each other: found 1\.500 mm"),
        (_localizer, r"slices differ in orientation, expected one stack\. Remove the localizer"),
        (_other_pixels, r"slices differ in pixel spacing"),
        (_other_size, r"not readable"),
        (_two_series, r"found 2 series, expected one"),
        (_without("PixelSpacing"), r"PixelSpacing: missing or unreadable\. Export"),
        (_without("ImagePositionPatient"), r"ImagePositionPatient: missing or unreadable"),
        (_without("ImageOrientationPatient"), r"ImageOrientationPatient: missing or unreadable"),
    ],
)
def test_series_that_are_not_a_regular_stack_raise(series: Series, change: Any, message: str) -> None:
    change(series)
    with pytest.raises(DataError, match=rf"se ries ü.*: {message}"):
        read(series.save())


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_truncated_slice_is_named_at_any_position(series: Series, which: int, keep: float) -> None:
    damaged = sorted(series.save().iterdir())[which]
    damaged.write_bytes(damaged.read_bytes()[: int(damaged.stat().st_size * keep)])
    with pytest.raises(
        DataError, match=rf"slices that cannot be read: found 1 \({damaged.name}\) of 5, expected none"
    ):
        read(series.folder)


def test_folders_without_one_series_raise(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(DataError, match=r"found no DICOM series, expected one"):
        read(tmp_path)


def from_headers(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine (RAS) and voxels in Hounsfield units `(X, Y, Z)` of a folder, by pydicom and the standard."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    row, column = np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(row, column)
    slices.sort(key=lambda one: float(np.array(one.ImagePositionPatient, dtype=float) @ normal))
    positions = np.array([one.ImagePositionPatient for one in slices], dtype=float)
    between_rows, between_columns = map(float, slices[0].PixelSpacing)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine = nib.affines.from_matvec(
        np.stack([row * between_columns, column * between_rows, step], axis=1), positions[0]
    )
    if slices[0].file_meta.TransferSyntaxUID.is_compressed:
        return TO_RAS @ affine, np.array([])
    voxels = [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    return TO_RAS @ affine, np.stack(voxels).T


@pytest.mark.parametrize(
    ("name", "shape", "shear"),
    [
        ("head_ct", (512, 512, 40), 0.0),
        ("gantry_tilt_ct", (512, 512, 20), 0.3173),
        ("jpeg2000_ct", (512, 512, 20), 0.0),
    ],
)
def test_real_series_has_the_expected_grid_and_intensities(
    shared_data: Path, name: str, shape: Any, shear: float
) -> None:
    volume = read(shared_data / "dicom" / name)
    affine, voxels = from_headers(shared_data / "dicom" / name)
    assert volume.grid.shape == shape
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-6)
    assert volume.grid.shear == pytest.approx(shear, abs=1e-4)
    assert volume.data.min() == -1024
    if voxels.size:
        assert np.array_equal(volume.data[0], voxels)
    else:
        assert 0 < np.percentile(volume.data[0, 150:350, 150:350], 80) < 200  # soft tissue


def test_real_series_with_uneven_gaps_raises(shared_data: Path) -> None:
    with pytest.raises(
        DataError, match=r"uneven_gaps_ct: uneven gaps between slices: found 1\.081 to 6\.999 mm"
    ):
        read(shared_data / "dicom" / "uneven_gaps_ct")


@pytest.mark.parametrize("which", [0, 4])
def test_real_series_with_a_truncated_slice_raises(shared_data: Path, tmp_path: Path, which: int) -> None:
    for path in sorted((shared_data / "dicom" / "head_ct").iterdir())[:5]:
        shutil.copyfile(path, tmp_path / path.name)
    damaged = sorted(tmp_path.iterdir())[which]
    damaged.write_bytes(damaged.read_bytes()[:-700])
    with pytest.raises(DataError, match=damaged.name):
        read(tmp_path)
