"""Segmentations of enhanced multi-frame images, which refer to their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.errors import DataError, DataWarning
from medseg.io.files import read, read_labels, write
from medseg.labels.label_table import Labels
from medseg.volumes.volume import Volume
from tests.helpers.dicom_labels import run_validator
from tests.helpers.dicom_series import Series, enhanced

LABELS = Labels.from_names({"liver": 1, "kidney_left": 2})
ORDER = [3, 0, 4, 1, 2, 5]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    whole = enhanced(Series(tmp_path / "single", 6, tilt=0.3), ORDER)
    whole.PatientName, whole.PatientBirthDate, whole.PatientSex = "Test^Case", "19700101", "O"
    whole.StudyDate, whole.StudyTime, whole.StudyID = "20200101", "120000", "1"
    whole.AccessionNumber, whole.ReferringPhysicianName = "A1", ""
    whole.save_as(tmp_path / "IM1.dcm", enforce_file_format=True)
    return tmp_path / "IM1.dcm"


def segmented(volume: Volume) -> Volume:
    data = np.random.default_rng(0).integers(0, 3, volume.data.shape).astype(np.uint8)
    data[..., 0] = 0  # a slice without voxels has no frame in the segmentation
    return volume.with_data(data, kind="label")


@pytest.mark.parametrize("suffix", [".seg.dcm", ".labelmap.dcm", ".rtstruct.dcm"])
def test_a_label_map_comes_back_on_the_grid_of_the_frames(source: Path, suffix: str) -> None:
    volume = read(source)
    labels = segmented(volume)
    path = source.with_name(f"a{suffix}")
    write(labels, path, names=LABELS)
    for like in (volume, source, volume.grid):
        found = read_labels(path, like=like)
        assert np.array_equal(found.data, labels.data)
        assert found.grid.matches(volume.grid)


def test_references_name_the_frame_of_each_slice(source: Path) -> None:
    write(segmented(read(source)), source.with_name("a.seg.dcm"), names=LABELS)
    write(segmented(read(source)), source.with_name("a.rtstruct.dcm"), names=LABELS)
    whole = pydicom.dcmread(source)
    heights = {
        number: float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        for number, group in enumerate(whole.PerFrameFunctionalGroupsSequence, start=1)
    }
    seg = pydicom.dcmread(source.with_name("a.seg.dcm"))
    for group in seg.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == whole.SOPInstanceUID
        found = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        assert heights[int(image.ReferencedFrameNumber)] == pytest.approx(found)
    structures = pydicom.dcmread(source.with_name("a.rtstruct.dcm"))
    for item in structures.ROIContourSequence:
        for contour in item.ContourSequence:
            (image,) = contour.ContourImageSequence
            assert heights[int(image.ReferencedFrameNumber)] == pytest.approx(float(contour.ContourData[2]))


@pytest.mark.parametrize("suffix", [".seg.dcm", ".rtstruct.dcm"])
@pytest.mark.extra("dciodvfy")
def test_files_are_valid(source: Path, suffix: str) -> None:
    path = source.with_name(f"a{suffix}")
    write(segmented(read(source)), path, names=LABELS)
    assert "Error" not in run_validator("dciodvfy", str(path))


def test_sources_to_which_nothing_can_refer_are_refused(source: Path, tmp_path: Path) -> None:
    whole = enhanced(Series(tmp_path / "single", 6), [3, 0, 3, *ORDER[2:]])
    whole.save_as(tmp_path / "twice.dcm", enforce_file_format=True)
    with pytest.warns(DataWarning, match="repeat another slice"):
        volume = read(tmp_path / "twice.dcm")
    with pytest.raises(DataError, match="frames that repeat others, expected each slice once"):
        write(segmented(volume), tmp_path / "a.seg.dcm", names=LABELS)
    first = enhanced(Series(tmp_path / "x", 3))
    second = enhanced(Series(tmp_path / "x", 3))
    second.SeriesInstanceUID, folder = first.SeriesInstanceUID, tmp_path / "two"
    folder.mkdir()
    for number, (one, start) in enumerate(((first, 100), (second, 107.5))):
        for k, group in enumerate(one.PerFrameFunctionalGroupsSequence):
            group.PlanePositionSequence[0].ImagePositionPatient[2] = start + 2.5 * k
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    volume = read(folder)
    assert volume.grid.shape[2] == 6
    with pytest.raises(DataError, match="found 2 multi-frame files, expected one as the source"):
        write(segmented(volume), tmp_path / "b.seg.dcm", names=LABELS)
