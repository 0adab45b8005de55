"""Folders with several series, exports with localizers, and the choice among them."""

from __future__ import annotations

import gc
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from medseg.cli.main import main
from medseg.data.datasets.cases import ReadingOptions
from medseg.data.datasets.image_inputs import read_images
from medseg.errors import DataError, DataWarning
from medseg.io.dicom.series_choice import list_series
from medseg.io.files import read, read_grid
from tests.helpers.dicom_series import Series, enhanced


@pytest.fixture
def export(tmp_path: Path) -> tuple[Path, list[Series]]:
    """A disk with a directory, a viewer, and two series of one patient."""
    disk = tmp_path / "disk"
    found = []
    for number, count in ((1, 5), (2, 7)):
        series = Series(disk / "DICOM" / "PAT0" / f"SE{number}", count)
        for one in series.slices:
            one.SeriesNumber, one.PatientName = number, "Secret^Name"
        series.save()
        found.append(series)
    (disk / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (disk / "VIEWER.EXE").write_bytes(b"MZ")
    return disk, found


def uid_of(series: Series) -> str:
    return str(series.slices[0].SeriesInstanceUID)


def test_a_series_is_chosen_by_number_or_uid(export: tuple[Path, list[Series]]) -> None:
    disk, found = export
    with pytest.raises(DataError, match=r"(?s)found 2 series, expected one:.*--series") as error:
        read(disk)
    assert "1: CT, 5 slices of 8x6, 0.9x0.7x2.5 mm, UID " + uid_of(found[0]) in str(error.value)
    assert "Secret" not in str(error.value)
    for number, one in enumerate(found, start=1):
        for choice in (number, str(number), uid_of(one)):
            assert np.array_equal(read(disk, series=choice).data[0], one.array.T - 24)
            assert read_grid(disk, series=choice).shape == one.array.T.shape
    for wrong in (3, "0", "1.2.3", "CT"):
        with pytest.raises(
            DataError, match=rf"(?s)series: found none with the number or UID '{wrong}'.*1: CT"
        ):
            read(disk, series=wrong)


def test_copies_in_other_folders_are_left_out(export: tuple[Path, list[Series]]) -> None:
    disk, found = export
    shutil.copytree(disk / "DICOM", disk / "BACKUP")
    with pytest.warns(DataWarning, match=r"found 5 files .* that repeat another slice"):
        assert np.array_equal(read(disk, series=1).data[0], found[0].array.T - 24)


def _marked(series: Series) -> None:
    for one in series.slices:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def _three_planes(series: Series) -> None:
    planes = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])
    for one, plane in zip(series.slices, planes, strict=True):
        one.ImageOrientationPatient = plane


def _screenshot(series: Series) -> None:
    for one in series.slices:
        one.Modality = "OT"
        del one.ImagePositionPatient, one.ImageOrientationPatient


@pytest.mark.parametrize(
    ("change", "what"),
    [(_marked, "localizer"), (_three_planes, "not parallel"), (_screenshot, "without positions")],
)
def test_the_only_volume_beside_others_is_the_natural_choice(
    tmp_path: Path, change: object, what: str
) -> None:
    volume, other = Series(tmp_path / "all", 5), Series(tmp_path / "other", 3)
    change(other)  # type: ignore[operator]
    volume.save()
    other.save()
    for file in other.folder.iterdir():
        shutil.move(file, volume.folder / f"x{file.name}")
    with pytest.warns(DataWarning, match=rf"(?s)found 2 series, of which only number \d is a volume.*{what}"):
        assert np.array_equal(read(volume.folder).data[0], volume.array.T - 24)


def test_two_unmarked_series_are_never_chosen_between(tmp_path: Path) -> None:
    series = Series(tmp_path / "ct", 5)
    series.slices[0].SeriesInstanceUID = "1.2.3"
    with pytest.raises(DataError, match="found 2 series, expected one"):
        read(series.save())


def test_a_damaged_slice_matters_only_where_the_series_is(export: tuple[Path, list[Series]]) -> None:
    disk, _ = export
    path = disk / "DICOM" / "PAT0" / "SE2" / "07.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    assert read(disk, series=1).data.shape == (1, 8, 6, 5)
    with pytest.raises(DataError, match=r"slices that cannot be read: found 1 \(07\.dcm\) of 7"):
        read(disk, series=2)


def test_multi_frame_series_are_listed_and_chosen(tmp_path: Path) -> None:
    first, second = Series(tmp_path, 5), Series(tmp_path, 4)
    for name, series in (("a.dcm", first), ("b.dcm", second)):
        whole = enhanced(series)
        whole.SeriesNumber = 1 if series is first else 2
        whole.save_as(tmp_path / name, enforce_file_format=True)
    assert [one.described().split(", UID")[0] for one in list_series(tmp_path)] == [
        "1: CT, 5 slices of 8x6, 0.9x0.7x2.5 mm",
        "2: CT, 4 slices of 8x6, 0.9x0.7x2.5 mm",
    ]
    assert np.array_equal(read(tmp_path, series=2).data[0], second.array.T - 24)


def test_an_export_is_one_image_of_a_cohort(export: tuple[Path, list[Series]]) -> None:
    disk, found = export
    for folder in (disk, disk / "DICOM"):
        (case,) = read_images(folder)
        assert case.images == (folder,)
    (case,) = read_images(disk / "DICOM" / "PAT0", 1, ReadingOptions(series=uid_of(found[1])))
    assert case.images == (disk / "DICOM" / "PAT0",)
    assert len(read_images(disk / "DICOM" / "PAT0")) == 2


def test_inspect_lists_the_series(
    export: tuple[Path, list[Series]], capsys: pytest.CaptureFixture[str]
) -> None:
    disk, found = export
    assert main(["inspect", str(disk)]) == 0
    printed = capsys.readouterr().out
    assert f"{disk}: 2 DICOM series" in printed
    assert f"  2: CT, 7 slices of 8x6, 0.9x0.7x2.5 mm, UID {uid_of(found[1])}" in printed
    assert "Secret" not in printed
    assert main(["inspect", str(disk), "--series", "2"]) == 0
    assert "8x6x7" in capsys.readouterr().out


def test_the_directory_of_an_export_stands_for_the_export(export: tuple[Path, list[Series]]) -> None:
    from pydicom.fileset import FileSet

    disk, found = export
    for one in (one for series in found for one in series.slices):
        one.StudyDate, one.StudyTime, one.StudyID, one.InstanceNumber = "20200101", "120000", "1", 1
    files = FileSet()
    for one in found[0].slices:
        files.add(one)
    files.write(disk.parent / "fileset")
    with (
        warnings.catch_warnings()
    ):  # pydicom leaves the removal of its temporary folder to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del files
        gc.collect()
    assert np.array_equal(read(disk.parent / "fileset" / "DICOMDIR").data[0], found[0].array.T - 24)
    assert np.array_equal(read(disk.parent / "fileset").data[0], found[0].array.T - 24)
