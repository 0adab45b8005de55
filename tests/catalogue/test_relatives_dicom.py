"""Relatives of reported faults of DICOM folders: previews, lost slices, several frames, inverted marks."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.data.datasets.image_inputs import image_files
from medseg.errors import DataError, collected_warnings
from medseg.io.dicom.dicom_header import DicomHeader
from medseg.io.files import read
from tests.helpers.dicom_series import Series
from tests.helpers.nifti_files import save


def preview(path: Path) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)


@pytest.mark.parametrize("name", ["thumb.png", "a.jpg", "scan.tif"])
def test_a_preview_next_to_folders_of_series_is_no_image(tmp_path: Path, name: str) -> None:
    folders = [Series(tmp_path / one, 3).save() for one in ("s1", "s2")]
    preview(tmp_path / name)
    with collected_warnings() as notes:
        assert image_files(tmp_path) == folders
    assert notes[0].startswith(
        f"{tmp_path}: found 1 natural image ({name}) next to 2 folders with a DICOM series"
    )


def test_volumes_next_to_folders_of_series_are_refused(tmp_path: Path) -> None:
    Series(tmp_path / "s1", 3).save()
    save(tmp_path / "a.nii.gz", np.ones((4, 4, 4)))
    with pytest.raises(
        DataError, match=r"found 1 folder with a DICOM series \(s1\) and 1 volume \(a\.nii\.gz\)"
    ):
        image_files(tmp_path)


def test_images_next_to_folders_of_other_files_are_read(tmp_path: Path) -> None:
    preview(tmp_path / "a.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README").write_text("x")
    assert image_files(tmp_path) == [tmp_path / "a.png"]


def test_a_disk_is_searched_for_its_series(tmp_path: Path) -> None:
    series = Series(tmp_path / "DICOM" / "P" / "SE1", 3)
    series.save()
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert np.array_equal(read(tmp_path).data[0], series.array.T - 24)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (gzip.compress, "gzip data"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda whole: b"<html>404</html>", "an HTML page"),
        (lambda whole: b"Not found", "text"),
        (lambda whole: b"PK\x03\x04" + whole, "a zip archive"),
        (lambda whole: whole[132:], "no DICM at byte 128"),
        (lambda whole: whole[300:], "no DICM at byte 128"),
        (lambda whole: b"x" * 17 + whole, "no DICM at byte 128"),
    ],
)
@pytest.mark.parametrize("slot", [0, -1])
def test_an_end_slice_that_is_something_else_is_not_left_out(
    tmp_path: Path, content: object, found: str, slot: int
) -> None:
    folder = Series(tmp_path / "ct", 5).save()
    path = sorted(folder.iterdir())[slot]
    path.write_bytes(content(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(
        DataError, match=rf"found 1 \({path.name}\) of 5, expected none\. .*{path.name}: found {found}"
    ):
        read(folder)


@pytest.mark.parametrize("name", ["readme.dcm", "report.pdf", "LIESMICH", "preview.webp"])
def test_other_files_do_not_count_as_slices(tmp_path: Path, name: str) -> None:
    folder = Series(tmp_path / "ct", 5).save()
    (folder / name).write_text("notes")
    with collected_warnings() as notes:
        assert read(folder).grid.shape == (8, 6, 5)
    assert f"found 1 other file ({name})" in notes[0]


def test_a_folder_of_files_without_mark_is_described(tmp_path: Path) -> None:
    (tmp_path / "00.dcm").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"no DICOM series but 1 other file \(00\.dcm: unknown content\)"):
        read(tmp_path)


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("modality", ["CT", "PT", "NM", "MR"])
@pytest.mark.parametrize("marked", [1, 5])
def test_marks_of_display_do_not_change_values(
    tmp_path: Path, syntax: str, modality: str, marked: int
) -> None:
    series = Series(tmp_path / "ct", 5)
    for number, one in enumerate(series.slices):
        one.file_meta.TransferSyntaxUID, one.Modality = syntax, modality
        one.PhotometricInterpretation = "MONOCHROME1" if number < marked else "MONOCHROME2"
    assert np.array_equal(read(series.save()).data[0], series.array.T - 24)


def frames(
    folder: Path, count: int, *, groups: bool = True, kind: str = "1.2.840.10008.5.1.4.1.1.2.1"
) -> Path:
    """Write one file with several frames, with or without functional groups."""
    one = Series(folder, 1).slices[0]
    one.PixelData, one.NumberOfFrames = one.PixelData * count, count
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = kind
    if groups:
        shared, measures = Dataset(), Dataset()
        measures.PixelSpacing = one.PixelSpacing
        shared.PixelMeasuresSequence = Sequence([measures])
        one.SharedFunctionalGroupsSequence = Sequence([shared])
        one.PerFrameFunctionalGroupsSequence = Sequence([Dataset() for _ in range(count)])
        del one.PixelSpacing, one.ImagePositionPatient, one.ImageOrientationPatient
    folder.mkdir()
    one.save_as(folder / "IM1.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize(
    ("count", "groups", "kind", "message"),
    [
        (12, True, "1.2.840.10008.5.1.4.1.1.2.1", "found no ImageOrientationPatient"),  # enhanced CT
        (1, True, "1.2.840.10008.5.1.4.1.1.4.1", "found no ImageOrientationPatient"),  # MR of one frame
        (20, False, "1.2.840.10008.5.1.4.1.1.3.1", "found a multi-frame file of 20 frames"),  # ultrasound
        (3, False, "1.2.840.10008.5.1.4.1.1.77.1.6", "found a multi-frame file of 3 frames"),  # whole slide
    ],
)
def test_files_of_several_frames_without_positions_are_refused(
    tmp_path: Path, count: int, groups: bool, kind: str, message: str
) -> None:
    folder = frames(tmp_path / "s", count, groups=groups, kind=kind)
    with pytest.raises(DataError, match=rf"IM1\.dcm: .*{message}"):
        read(folder)
    shutil.copy(folder / "IM1.dcm", folder / "IM2.dcm")
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), (" 12\\13 ", 12), ("+-5", 7), ("9" * 4000, 7), ("1_0", 7), ("²", 7), ("", 7)],
)
def test_numbers_in_headers_are_read_strictly(text: str, number: int) -> None:
    assert DicomHeader(Path("a"), "", {1: text}, None, 0).number(1, 7) == number
