"""DICOM structure sets: written for a series and read back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.errors import DataError, DataWarning
from medseg.io.companions.label_names import label_names_of
from medseg.io.files import read, read_labels, read_segments, write
from medseg.labels.label_table import Labels
from medseg.labels.segments import Algorithm
from medseg.volumes.grid import Grid
from tests.helpers.dicom_labels import NAMES, image_on, labels_on, oblique_grid, run_validator
from tests.helpers.dicom_series import save_series


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series on an oblique grid, and its structure set next to the folder."""
    folder = tmp_path_factory.mktemp("rtstruct")
    grid = oblique_grid()
    series = save_series(folder / "series", image_on(grid))
    write(
        labels_on(grid),
        folder / "case.rtstruct.dcm",
        names=NAMES,
        like=series,
        algorithm=Algorithm("organs", "1"),
    )
    return folder


@pytest.fixture
def dataset(folder: Path) -> pydicom.Dataset:
    """The structure set, to be changed."""
    return pydicom.dcmread(folder / "case.rtstruct.dcm")


def test_label_map_names_and_colours_come_back(folder: Path) -> None:
    found, names = read_labels(folder / "case.rtstruct.dcm"), label_names_of(folder / "case.rtstruct.dcm")
    grid = read(folder / "series").grid
    assert found.grid == grid
    assert np.array_equal(found.data, labels_on(grid).data)
    assert names == NAMES


def test_dataset_refers_to_its_source(folder: Path, dataset: pydicom.Dataset) -> None:
    slices = [pydicom.dcmread(file) for file in sorted((folder / "series").iterdir())]
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    study = frame.RTReferencedStudySequence[0]
    series = study.RTReferencedSeriesSequence[0]
    assert frame.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert study.ReferencedSOPInstanceUID == slices[0].StudyInstanceUID == dataset.StudyInstanceUID
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID
    uids = [one.ReferencedSOPInstanceUID for one in series.ContourImageSequence]
    assert uids == [one.SOPInstanceUID for one in slices]
    for roi in dataset.StructureSetROISequence:
        assert (roi.ROIGenerationAlgorithm, roi.ROIGenerationDescription) == ("AUTOMATIC", "organs 1")


def test_contours_are_planar_in_the_slices_that_they_name(folder: Path, dataset: pydicom.Dataset) -> None:
    slices = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (folder / "series").iterdir())}
    count = 0
    for item in dataset.ROIContourSequence:
        for contour in item.ContourSequence:
            source = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            rows, columns = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            away = (points - np.array(source.ImagePositionPatient, float)) @ np.cross(rows, columns)
            assert np.abs(away).max() < 1e-6
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            assert contour.NumberOfContourPoints == len(points)
            count += 1
    assert count == 3 * 2 + 1 + 2 + 2  # a ring and its island in three slices; the others by hand


@pytest.mark.extra("dciodvfy")
def test_validator_finds_no_error(folder: Path) -> None:
    found = run_validator("dciodvfy", str(folder / "case.rtstruct.dcm"))
    assert "RTStructureSet" in found
    assert "Error" not in found


@pytest.mark.extra("dcmdump")
def test_dcmtk_reads_the_file(folder: Path) -> None:
    found = run_validator("dcmdump", "-q", str(folder / "case.rtstruct.dcm"))
    assert "Liver tumour" in found
    assert "E:" not in found


@pytest.mark.parametrize("place", ["same folder", "folder within", "folder next to it"])
def test_series_is_found_near_the_file(folder: Path, tmp_path: Path, place: str) -> None:
    within = {"same folder": "study", "folder within": "study/ct", "folder next to it": "ct"}[place]
    shutil.copytree(folder / "series", tmp_path / within)
    (tmp_path / "study").mkdir(exist_ok=True)
    shutil.copy(folder / "case.rtstruct.dcm", tmp_path / "study" / "labels.dcm")
    found = read_labels(tmp_path / "study" / "labels.dcm")
    assert np.array_equal(found.data, labels_on(oblique_grid()).data)


def test_file_without_its_series_needs_an_image(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "alone" / "case.rtstruct.dcm"
    file.parent.mkdir()
    shutil.copy(folder / "case.rtstruct.dcm", file)
    save_series(tmp_path / "other", image_on(oblique_grid(shape=(4, 4, 2))))
    with pytest.raises(DataError, match=r"found no series that it refers to.*like=SERIES"):
        read_labels(file)
    image = read(folder / "series")
    for axcodes in ("LPS", "RAS", "SAR"):
        turned = image.reoriented(axcodes)
        assert np.array_equal(
            read_labels(file, like=turned).data, labels_on(image.grid).reoriented(axcodes).data
        )
    write(image, tmp_path / "image.nii.gz")
    assert np.array_equal(read_labels(file, like=tmp_path / "image.nii.gz").data, labels_on(image.grid).data)


def test_holes_may_be_contours_of_their_own(folder: Path, tmp_path: Path, dataset: pydicom.Dataset) -> None:
    image = read(folder / "series")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.grid.affine
    squares = [((2, 2), (9, 9)), ((4, 4), (6, 6))]
    contours = []
    for (a, b), (c, d) in squares:
        corners = np.array([[a, b, 2], [c, b, 2], [c, d, 2], [a, d, 2]]) - [0.5, 0.5, 0]
        contour = pydicom.Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSEDPLANAR_XOR", 4
        contour.ContourData = [
            f"{value:.8g}" for value in (corners @ affine[:3, :3].T + affine[:3, 3]).ravel()
        ]
        contours.append(contour)
    dataset.ROIContourSequence[0].ContourSequence = contours
    dataset.save_as(tmp_path / "xor.dcm")
    found = read_segments(tmp_path / "xor.dcm", like=image).label_map(order=["liver"])
    expected = np.zeros(image.grid.shape, bool)
    expected[2:9, 2:9, 2] = True
    expected[4:6, 4:6, 2] = False
    assert np.array_equal(found.data[0] == 3, expected)


def test_points_are_ignored_and_contours_between_slices_refused(
    folder: Path, tmp_path: Path, dataset: pydicom.Dataset
) -> None:
    image = read(folder / "series")
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"
    dataset.save_as(tmp_path / "point.dcm")
    with pytest.warns(DataWarning, match="structure liver: found 1 points or open contours"):
        read_labels(tmp_path / "point.dcm", like=image)
    coarse = Grid.from_spacing(image.grid.shape, (0.7, 0.9, 3.7))
    affine = image.grid.affine.copy()
    affine[:3, 2] *= 1.48
    with pytest.raises(DataError, match=r"structure liver: found a contour at slice \d"):
        read_labels(folder / "case.rtstruct.dcm", like=Grid(coarse.shape, affine))


def test_overlapping_structures_are_layers(folder: Path, tmp_path: Path, dataset: pydicom.Dataset) -> None:
    tumour = next(item for item in dataset.ROIContourSequence if item.ReferencedROINumber == 12)
    liver = next(item for item in dataset.ROIContourSequence if item.ReferencedROINumber == 3)
    tumour.ContourSequence = liver.ContourSequence[:1]
    dataset.save_as(tmp_path / "overlap.dcm")
    image = read(folder / "series")
    with pytest.raises(DataError, match="liver and Liver tumour share"):
        read_labels(tmp_path / "overlap.dcm", like=image)
    assert read_segments(tmp_path / "overlap.dcm", like=image).volume.channels == 2


def test_structures_without_contours_and_with_number_zero(
    folder: Path, tmp_path: Path, dataset: pydicom.Dataset
) -> None:
    del dataset.ROIContourSequence[1].ContourSequence
    for sequence, name in (
        (dataset.StructureSetROISequence, "ROINumber"),
        (dataset.ROIContourSequence, "ReferencedROINumber"),
    ):
        setattr(sequence[0], name, 0)
    dataset.save_as(tmp_path / "zero.dcm")
    names = label_names_of(tmp_path / "zero.dcm")
    assert names is not None
    assert names.value_of("liver") == 1
    found = read_labels(tmp_path / "zero.dcm", like=folder / "series")
    assert set(np.unique(found.data)) == {0, 1, 13, 301}


def test_empty_label_map(folder: Path, tmp_path: Path) -> None:
    image = read(folder / "series")
    empty = image.with_data(np.zeros_like(image.data, np.uint8), "label")
    write(empty, tmp_path / "none.rtstruct.dcm", names=Labels.from_names({"liver": 1}))
    assert not read_labels(tmp_path / "none.rtstruct.dcm", like=image).data.any()
