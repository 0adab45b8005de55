"""DICOM series: geometry from the headers, and folders that are no regular stack."""

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
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

from medseg.data.datasets.image_inputs import read_images
from medseg.errors import DataError, DataWarning
from medseg.io.files import read, read_grid, write
from tests.helpers.dicom_series import Series

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
    with pytest.warns(DataWarning, match=r"ct: found one slice"):
        assert read(series.save()).spacing == pytest.approx((0.9, 0.7, thickness))


def test_rounded_positions_are_accepted_and_other_files_ignored(series: Series) -> None:
    for one, noise in zip(series.slices, [0, 4e-3, -4e-3, 2e-3, 0], strict=True):
        one.ImagePositionPatient[2] = float(one.ImagePositionPatient[2]) + noise
    (series.save() / "readme.txt").write_text("not a slice")
    (series.folder / "empty").write_text("")
    (series.folder / "below").mkdir()
    with pytest.warns(
        DataWarning, match=r"found 2 other files \(empty, readme\.txt\) next to the 5 slices; ignored"
    ):
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
        (
            _missing,
            r"uneven gaps between slices: found 2\.500 to 5\.000 mm, expected 2\.500 mm .*5\.000 mm between 07\.dcm and 14\.dcm "
            r"at 102\.50 mm.*export",
        ),
        (
            _doubled,
            r"found 14\.dcm and 21\.dcm at the same place \(107\.50 mm\) with different pixels.*Remove one",
        ),
        (_all_at_one_place, r"found all 5 slices at the same place, expected one per place"),
        (_shifted, r"slices are shifted sideways against each other: found 1\.500 mm"),
        (_localizer, r"slices differ in orientation: found .* Remove the localizer"),
        (_other_pixels, r"slices differ in pixel spacing"),
        (_other_size, r"slices differ in size: found 8, 3 in 21\.dcm, expected 8, 6 as in 00\.dcm"),
        (
            _two_series,
            r"found 2 series, expected one:\n(.*\n)?  \d: CT, 4 slices of 8x6, 0\.9x0\.7x2\.5 mm, UID [\d.]+",
        ),
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
    with pytest.raises(
        DataError, match=r"found no DICOM series but 1 other file \(note\.txt: text\), expected one"
    ):
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


def test_rounded_positions_make_an_even_stack(tmp_path: Path) -> None:
    """Scanners write positions with one decimal; what is left of it is far below a voxel."""
    for gap, decimals in ((1.25, 1), (0.625, 1), (2.5, 0), (0.33, 2)):
        series = Series(tmp_path / f"{gap}", count=40, gap=gap)
        for index, one in enumerate(series.slices):
            one.ImagePositionPatient[2] = round(100 + gap * index, decimals)
        if gap == 2.5:  # half a millimetre of 2.5 is a fifth of a voxel
            with pytest.raises(DataError, match="uneven gaps between slices"):
                read(series.save())
            continue
        volume = read(series.save())
        assert volume.spacing[2] == pytest.approx(gap, rel=2e-3)
        assert volume.grid.affine[2, 3] == pytest.approx(100, abs=0.05)
        assert np.array_equal(volume.data[0], series.array.T - 24)


@pytest.mark.parametrize("which", [0, 1, 20, 38])
def test_a_missing_slice_of_a_long_series_is_named(tmp_path: Path, which: int) -> None:
    series = Series(tmp_path / "ct", count=40, gap=1.25)
    for index, one in enumerate(series.slices):
        one.ImagePositionPatient[2] = round(100 + 1.25 * index, 1)
    if which == 0:
        del series.slices[1]
    else:
        del series.slices[which]
    with pytest.raises(DataError, match=r"uneven gaps .* mm between \d+\.dcm and \d+\.dcm at 1\d\d\.\d\d mm"):
        read(series.save())


@pytest.mark.parametrize("volumes", [2, 3])
def test_several_volumes_under_one_uid(tmp_path: Path, volumes: int) -> None:
    series = Series(tmp_path / "perfusion", count=4 * volumes)
    for index, one in enumerate(series.slices):
        one.ImagePositionPatient[2] = 100 + 2.5 * (index % 4)
    with pytest.raises(
        DataError, match=rf"perfusion: found {volumes} volumes at the same 4 places, .* a 4D series.*dcm2niix"
    ):
        read(series.save())


def test_a_copied_file_is_ignored_with_a_warning(series: Series) -> None:
    shutil.copy(series.save() / "07.dcm", series.folder / "copy.dcm")
    with pytest.warns(DataWarning, match=r"found 1 file \(copy\.dcm\) that repeat another slice"):
        assert read(series.folder).data.shape == (1, 8, 6, 5)


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", r"found 0 bytes, expected a slice\. Copy the file again"),
        (lambda content: content[:100], r"found no DICM at byte 128"),
        (lambda content: content[:130], r"found no DICM at byte 128"),
        (lambda content: content[:200], r"damaged or cut off"),
        (lambda content: content[132:], r"found no DICM at byte 128"),
        (lambda content: content[:128] + b"XXXX" + content[132:], r"found no DICM at byte 128"),
        (
            lambda content: content[:-40],
            r"element \(7fe0,0010\): found a length of 96 bytes, expected at most the 56",
        ),
        (
            lambda content: content.replace((96).to_bytes(4, "little"), (40).to_bytes(4, "little"))[:-56],
            r"PixelData: found 40 bytes, expected 96",
        ),
        (
            lambda content: content.replace((96).to_bytes(4, "little"), (2**31).to_bytes(4, "little")),
            r"found a length of 2147483648 bytes",
        ),
    ],
)
def test_a_damaged_slice_is_named_at_any_position(
    series: Series, which: int, damage: Any, message: str
) -> None:
    path = series.save() / f"{(which * 7) % 100:02d}.dcm"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        DataError, match=rf"slices that cannot be read: found 1 \({path.name}\) of 5, .*{message}"
    ):
        read(series.folder)


def test_a_series_without_any_mark_is_refused(series: Series) -> None:
    for path in series.save().iterdir():
        path.write_bytes(path.read_bytes()[132:])
    with pytest.raises(DataError, match=r"found 5 \(00\.dcm, .*found no DICM at byte 128"):
        read(series.folder)


def test_cut_sequences_and_deep_ones(series: Series) -> None:
    from pydicom import Dataset, Sequence

    inner = Dataset()
    inner.CodeMeaning = "x"
    for one in series.slices:
        one.ProcedureCodeSequence = Sequence([inner])
        one["ProcedureCodeSequence"].is_undefined_length = True
    assert read(series.save()).data.shape == (1, 8, 6, 5)
    path = series.folder / "07.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xfe\xff\x00\xe0") + 4])
    with pytest.raises(DataError, match=r"07\.dcm"):
        read(series.folder)
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x32\x10SQ\0\0\xff\xff\xff\xff"
    at = content.index(b"\x08\x00\x32\x10SQ")
    path.write_bytes(content[: at + 12] + item * 300 + content[at + 12 :])
    with pytest.raises(DataError, match=r"nested deeper than 32"):
        read(series.folder)


def test_a_preview_or_a_directory_does_not_hide_a_series(series: Series, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(series.save() / "thumb.png")
    Image.new("L", (64, 64)).save(series.folder / "thumb.jpg")
    (case,) = read_images(series.folder)
    assert case.images == (series.folder,)
    with pytest.warns(
        DataWarning, match=r"found 2 other files \(thumb\.jpg, thumb\.png\) next to the 5 slices"
    ):
        assert read(series.folder).data.shape == (1, 8, 6, 5)
    disk = tmp_path / "disk"
    shutil.copytree(series.folder, disk / "s1")
    shutil.copytree(series.folder, disk / "s2")
    (disk / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (disk / "README.TXT").write_text("viewer")
    assert [one.images for one in read_images(disk)] == [(disk / "s1",), (disk / "s2",)]
    Series(tmp_path / "other").save()
    write(read(tmp_path / "other"), series.folder / "volume.nii.gz")
    with pytest.raises(
        DataError, match=r"found DICOM slices and 1 volume \(volume\.nii\.gz\), expected one or the other"
    ):
        read_images(series.folder)


def test_other_objects_beside_a_series_are_ignored(series: Series) -> None:
    dose = Series(series.folder, count=1)
    dose.slices[0].SOPClassUID = dose.slices[0].file_meta.MediaStorageSOPClassUID = (
        "1.2.840.10008.5.1.4.1.1.481.2"
    )
    dose.slices[0].Modality = "RTDOSE"
    series.save()
    dose.slices[0].save_as(series.folder / "dose.dcm", enforce_file_format=True)
    with pytest.warns(DataWarning, match=r"found 1 other file \(dose\.dcm\) next to the 5 slices"):
        assert read(series.folder).data.shape == (1, 8, 6, 5)
    for path in series.folder.glob("[0-9]*"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"found no DICOM series of images but 1 DICOM file of other kinds \(dose\.dcm\)"
    ):
        read(series.folder)


def _multi_frame(series: Series) -> None:
    for one in series.slices:
        one.NumberOfFrames = 2
        one.PixelData = one.PixelData * 2


def _enhanced(series: Series) -> None:
    from pydicom import Dataset, Sequence

    for one in series.slices:
        one.PerFrameFunctionalGroupsSequence = Sequence([Dataset()])
        del one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing


def _mosaic(series: Series) -> None:
    for one in series.slices:
        one.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]


def _film(series: Series) -> None:
    for one in series.slices:
        one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
        one.PixelData = encapsulate([one.PixelData])
        one["PixelData"].is_undefined_length = True


def _x_ray(series: Series) -> None:
    for one in series.slices:
        one.Modality = "DX"
        del one.ImagePositionPatient, one.ImageOrientationPatient


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_multi_frame, r"found a multi-frame file of 2 frames without a position for each frame"),
        (_enhanced, r"PixelMeasuresSequence of frame 1: found no PixelSpacing"),
        (
            _mosaic,
            r"found a mosaic of slices, expected one slice per file or frame\. Convert it with dcm2niix",
        ),
        (
            _film,
            r"TransferSyntaxUID: found '1\.2\.840\.10008\.1\.2\.4\.102', a film \(MPEG\), expected images",
        ),
        (_x_ray, r"found none in an image of modality DX, .*Give the file itself"),
    ],
)
def test_kinds_of_files_that_are_not_read(series: Series, change: Any, message: str) -> None:
    change(series)
    with pytest.raises(DataError, match=message):
        read(series.save())


@pytest.mark.parametrize(
    ("modality", "inverted"), [("CT", False), ("PT", False), ("MR", False), ("XA", True)]
)
def test_monochrome1_inverts_only_projections(series: Series, modality: str, inverted: bool) -> None:
    for one in series.slices:
        one.PhotometricInterpretation, one.Modality = "MONOCHROME1", modality
    same = np.array_equal(read(series.save()).data[0], series.array.T - 24)
    assert same != inverted


def test_one_file_of_a_series_names_its_folder(series: Series) -> None:
    path = series.save() / "07.dcm"
    for name in ("07.dcm", "I0007", "DICOMDIR"):
        shutil.copy(path, series.folder / name) if name != path.name else None
        with pytest.raises(
            DataError, match=rf"{name}: found one DICOM file, expected the folder of its series\. Give .*ü\."
        ):
            read(series.folder / name)
