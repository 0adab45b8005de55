"""DICOM segmentations of type BINARY and LABELMAP: written for a series and read back."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.errors import ConfigError, DataError, DataWarning
from medseg.io.companions.label_names import label_names_of
from medseg.io.dicom.pydicom_files import LABELMAP_SEG, SEG
from medseg.io.files import read, read_grid, read_labels, read_segments, write
from medseg.labels.label_table import Labels
from medseg.labels.segments import Algorithm
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.dicom_labels import NAMES, image_on, labels_on, oblique_grid, run_validator
from tests.helpers.dicom_series import Series, save_series

ALGORITHM = Algorithm("organs", "1f3a9c")
TYPES = (".seg.dcm", ".labelmap.dcm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series on an oblique grid, and its label map in both types, with names and algorithm."""
    folder = tmp_path_factory.mktemp("seg")
    grid = oblique_grid()
    series = save_series(
        folder / "series", image_on(grid), PatientName="Canary^Müller", SpecificCharacterSet="ISO_IR 100"
    )
    for suffix in TYPES:
        write(labels_on(grid), folder / f"case{suffix}", names=NAMES, like=series, algorithm=ALGORITHM)
    return folder


@pytest.mark.parametrize("suffix", TYPES)
def test_label_map_names_and_colours_come_back(folder: Path, suffix: str) -> None:
    image, found = read(folder / "series"), read_labels(folder / f"case{suffix}")
    assert found.is_label
    assert found.grid.distance(image.grid) < 1e-3
    assert np.array_equal(found.data, labels_on(image.grid).data)
    names = label_names_of(folder / f"case{suffix}")
    assert names is not None
    assert names.names == ("background", "liver", "kidney_left", "Liver tumour", "spleen")
    assert names.values == (0, 3, 7, 12, 300)
    for one in names.foreground:
        wanted = next(other.colour for other in NAMES if other.name == one.name)
        assert np.abs(np.subtract(one.colour, wanted)).max() <= 1  # rounded in CIELab


@pytest.mark.parametrize("suffix", TYPES)
def test_dataset_states_type_codes_algorithm_and_source(folder: Path, suffix: str) -> None:
    dataset = pydicom.dcmread(folder / f"case{suffix}")
    slices = [pydicom.dcmread(file) for file in sorted((folder / "series").iterdir())]
    binary = suffix == ".seg.dcm"
    assert dataset.SOPClassUID == (SEG if binary else LABELMAP_SEG)
    assert dataset.SegmentationType == ("BINARY" if binary else "LABELMAP")
    for name in (
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "AccessionNumber",
        "PatientBirthDate",
    ):
        assert dataset[name].value == slices[0][name].value
    assert str(dataset.PatientName) == "Canary^Müller"
    assert dataset.SeriesInstanceUID != slices[0].SeriesInstanceUID
    referenced = dataset.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in referenced.ReferencedInstanceSequence} == {
        one.SOPInstanceUID for one in slices
    }
    items = {one.SegmentLabel: one for one in dataset.SegmentSequence}
    assert [one.SegmentNumber for one in dataset.SegmentSequence] == (
        [1, 2, 3, 4] if binary else [0, 3, 7, 12, 300]
    )
    kidney = items["kidney_left"].SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.CodeValue, kidney.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert items["Liver tumour"].AnatomicRegionSequence[0].CodeMeaning == "Liver"
    algorithm = items["liver"].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("organs", "1f3a9c")
    assert items["liver"].SegmentAlgorithmType == "AUTOMATIC"


def test_frames_are_at_the_positions_of_their_slices(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "case.labelmap.dcm")
    slices = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (folder / "series").iterdir())}
    assert dataset.NumberOfFrames == len(slices)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        stated = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(
            np.array(stated, float), np.array(slices[source].ImagePositionPatient, float), atol=1e-6
        )


@pytest.mark.parametrize("suffix", TYPES)
def test_another_reader_finds_the_same_segments(folder: Path, suffix: str) -> None:
    highdicom = pytest.importorskip("highdicom")
    found = highdicom.seg.segread(folder / f"case{suffix}")
    volume = found.get_volume(combine_segments=True).array  # frames, rows, columns
    data = labels_on(oblique_grid()).data[0]
    numbers = {one.SegmentLabel: one.SegmentNumber for one in found.SegmentSequence}
    for label in NAMES.foreground:
        slices = np.flatnonzero((data == label.value).any(axis=(0, 1)))
        own = np.flatnonzero((volume == numbers[label.name]).any(axis=(1, 2)))
        assert np.ptp(slices) == np.ptp(own)
        assert (volume == numbers[label.name]).sum() == (data == label.value).sum()
        flat = (data == label.value).any(axis=2).T
        assert np.array_equal((volume == numbers[label.name]).any(axis=0), flat)


@pytest.mark.extra("dciodvfy")
def test_validator_finds_no_error(folder: Path) -> None:
    found = run_validator("dciodvfy", str(folder / "case.seg.dcm"))
    assert "Segmentation" in found
    assert "Error" not in found


@pytest.mark.extra("dcmdump")
@pytest.mark.parametrize("suffix", TYPES)
def test_dcmtk_reads_the_file(folder: Path, suffix: str) -> None:
    found = run_validator("dcmdump", "-q", str(folder / f"case{suffix}"))
    assert "kidney_left" in found
    assert "E:" not in found


LABELMAP_ATTRIBUTES = (  # type 1 of the modules of the Label Map Segmentation IOD, PS3.3, A.51.5 and C.8.20
    *("ImageType", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation"),
    *(
        "PhotometricInterpretation",
        "LossyImageCompression",
        "SegmentationType",
        "SegmentSequence",
        "ContentLabel",
    ),
    *("ContentDate", "ContentTime", "InstanceNumber", "NumberOfFrames", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence"),
    *(
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "FrameOfReferenceUID",
    ),
    *(
        "Modality",
        "SeriesInstanceUID",
        "SeriesNumber",
        "StudyInstanceUID",
        "SOPInstanceUID",
        "PixelPaddingValue",
    ),
)


def test_labelmap_has_the_attributes_of_the_standard(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "case.labelmap.dcm")
    assert [name for name in LABELMAP_ATTRIBUTES if dataset.get(name) in (None, "")] == []
    assert dataset.PhotometricInterpretation == "MONOCHROME2"
    assert (dataset.BitsAllocated, dataset.PixelPaddingValue) == (16, 0)
    for item in dataset.SegmentSequence:
        assert item.SegmentLabel
        assert item.SegmentedPropertyCategoryCodeSequence
        assert item.SegmentedPropertyTypeCodeSequence


@pytest.mark.parametrize("order", ["".join(codes) for codes in permutations("LPS")] + ["RAI", "ARS", "SLA"])
def test_any_order_of_axes(tmp_path: Path, order: str) -> None:
    grid = oblique_grid(order)
    series = save_series(tmp_path / "series", image_on(grid))
    image = read(series)
    label_map = image.with_data(np.zeros_like(image.data, np.uint8), "label")
    label_map.data[0, 2:5, 1:4, 1:3] = 1
    label_map.data[0, 0, 0, 0] = 2
    write(label_map, tmp_path / "case.seg.dcm", names=Labels.from_names({"liver": 1, "spleen": 2}))
    found = read_labels(tmp_path / "case.seg.dcm")
    assert found.grid.matches(image.grid)
    assert np.array_equal(found.data, label_map.data)


def test_label_map_in_another_orientation_is_turned_to_the_series(tmp_path: Path) -> None:
    grid = oblique_grid()
    series = save_series(tmp_path / "series", image_on(grid))
    write(labels_on(grid).reoriented("SAR"), tmp_path / "case.seg.dcm", names=NAMES, like=str(series))
    assert np.array_equal(read_labels(tmp_path / "case.seg.dcm").data, labels_on(grid).data)


@pytest.mark.parametrize("suffix", [*TYPES, ".rtstruct.dcm"])
def test_tilted_gantry_keeps_its_shear(tmp_path: Path, suffix: str) -> None:
    image = read(Series(tmp_path / "ct", tilt=0.8).save())
    label_map = image.with_data((image.data > 300).astype(np.uint8), "label")
    write(label_map, tmp_path / f"case{suffix}", names=Labels.from_names({"liver": 1}))
    found = read_labels(tmp_path / f"case{suffix}")
    assert found.grid.is_sheared
    assert found.grid.distance(image.grid) < 1e-3
    assert np.array_equal(found.data, label_map.data)


def test_uneven_series_is_refused(tmp_path: Path) -> None:
    series = Series(tmp_path / "ct")
    series.slices[3].ImagePositionPatient = [-20.5, 10, 109]
    label_map = Volume(np.ones((1, 8, 6, 5), np.uint8), Grid.from_spacing((8, 6, 5)), "label")
    with pytest.raises(DataError, match="uneven gaps"):
        write(label_map, tmp_path / "case.seg.dcm", like=series.save())


@pytest.mark.parametrize("suffix", TYPES)
def test_empty_label_map_keeps_the_first_label(folder: Path, tmp_path: Path, suffix: str) -> None:
    image = read(folder / "series")
    write(
        image.with_data(np.zeros_like(image.data, np.uint8), "label"), tmp_path / f"none{suffix}", names=NAMES
    )
    found = read_labels(tmp_path / f"none{suffix}")
    assert found.grid.matches(image.grid)
    assert not found.data.any()
    names = label_names_of(tmp_path / f"none{suffix}")
    assert names is not None
    assert names.names == ("background", "liver")


def test_segments_at_one_slice_are_placed_in_the_series(folder: Path, tmp_path: Path) -> None:
    image = read(folder / "series")
    label_map = image.with_data(np.zeros_like(image.data, np.uint8), "label")
    label_map.data[0, 2:4, 2:4, 4] = 1
    write(label_map, tmp_path / "one.seg.dcm", names=Labels.from_names({"liver": 1}))
    assert np.array_equal(read_labels(tmp_path / "one.seg.dcm").data, label_map.data)


def test_file_without_list_of_sources_has_the_slices_of_its_frames(folder: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(folder / "case.seg.dcm")
    del dataset.ReferencedSeriesSequence
    dataset.save_as(tmp_path / "foreign.dcm")
    image = read(folder / "series")
    found = read_labels(tmp_path / "foreign.dcm")
    assert found.grid.shape == (18, 14, 4)  # slices 1 to 4
    assert np.array_equal(found.data, labels_on(image.grid).data[..., 1:5])
    placed = read_labels(tmp_path / "foreign.dcm", like=folder / "series")
    assert np.array_equal(placed.data, labels_on(image.grid).data)
    moved = Grid.from_spacing(image.grid.shape)
    with pytest.raises(DataError, match="not on the grid of its image"):
        read_labels(tmp_path / "foreign.dcm", like=moved)


def test_overlapping_segments_are_layers(folder: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(folder / "case.seg.dcm")
    for group in dataset.PerFrameFunctionalGroupsSequence:  # the tumour is drawn at the place of the liver
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 3:
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")[
        : 18 * 14 * int(dataset.NumberOfFrames)
    ]
    frames = bits.reshape(-1, 14, 18)
    kidney = [
        index
        for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence)
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2
    ]
    frames[kidney[0], 1, 1:4] = 1  # three voxels of the liver
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes() + b"\0" * 2
    dataset.save_as(tmp_path / "overlap.dcm")
    with pytest.raises(DataError, match=r"overlap \(liver and kidney_left share 3 voxels\)"):
        read_labels(tmp_path / "overlap.dcm")
    assert read(tmp_path / "overlap.dcm").channels == 2
    segments = read_segments(tmp_path / "overlap.dcm")
    over = segments.label_map(order=["kidney_left", "liver"]).data
    under = segments.label_map(order=["liver", "kidney_left"]).data
    assert (over == 3).sum() - (under == 3).sum() == 3
    with pytest.raises(DataError, match=r"unknown segment 'livr'.*Did you mean 'liver'"):
        segments.label_map(order=["livr"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("SOPInstanceUID", "SOPInstanceUID: found none"),
        ("StudyInstanceUID", "StudyInstanceUID: found none"),
        ("FrameOfReferenceUID", "FrameOfReferenceUID: found none"),
    ],
)
@pytest.mark.parametrize("suffix", [*TYPES, ".rtstruct.dcm"])
def test_series_without_its_uids_is_refused(tmp_path: Path, missing: str, message: str, suffix: str) -> None:
    grid = oblique_grid(shape=(4, 4, 2))
    series = save_series(tmp_path / "series", image_on(grid), **{missing: ""})
    label_map = Volume(np.ones((1, 4, 4, 2), np.uint8), grid, "label")
    with pytest.raises(DataError, match=f"{message}.*stripped"):
        write(label_map, tmp_path / f"case{suffix}", like=series, names=Labels.from_names({"liver": 1}))
    assert not (tmp_path / f"case{suffix}").exists()


def test_repeated_instance_uids_are_refused(tmp_path: Path) -> None:
    grid = oblique_grid(shape=(4, 4, 2))
    series = save_series(tmp_path / "series", image_on(grid), SOPInstanceUID="1.2.3")
    with pytest.raises(DataError, match="found 1 different ones in 2 slices"):
        write(Volume(np.ones((1, 4, 4, 2), np.uint8), grid, "label"), tmp_path / "case.seg.dcm", like=series)


def test_missing_attributes_of_the_patient_become_empty(tmp_path: Path) -> None:
    grid = oblique_grid(shape=(4, 4, 2))
    gone = dict.fromkeys(
        ("PatientName", "PatientID", "PatientSex", "StudyTime", "AccessionNumber", "SliceThickness")
    )
    series = save_series(tmp_path / "series", image_on(grid), StudyDate="20.01.2020", **gone)
    label_map = Volume(np.ones((1, 4, 4, 2), np.uint8), grid, "label")
    for suffix in (*TYPES, ".rtstruct.dcm"):
        write(label_map, tmp_path / f"case{suffix}", like=series, names=Labels.from_names({"liver": 1}))
        dataset = pydicom.dcmread(tmp_path / f"case{suffix}")
        assert not dataset.PatientName
        assert not dataset.StudyDate
        assert np.array_equal(read_labels(tmp_path / f"case{suffix}").data, label_map.data)


def test_volume_from_another_file_needs_the_series(tmp_path: Path) -> None:
    grid = oblique_grid(shape=(4, 4, 2))
    label_map = Volume(np.ones((1, 4, 4, 2), np.uint8), grid, "label")
    with pytest.raises(DataError, match=r"not read from a DICOM series.*like=FOLDER"):
        write(label_map, tmp_path / "case.seg.dcm")
    series = save_series(tmp_path / "series", image_on(oblique_grid(shape=(4, 5, 2))))
    with pytest.raises(DataError, match="not on the grid of the source series"):
        write(label_map, tmp_path / "case.seg.dcm", like=series)


def test_values_without_a_name_and_unannotated_voxels_are_refused(folder: Path, tmp_path: Path) -> None:
    image = read(folder / "series")
    label_map = image.with_data(np.full_like(image.data, 9, np.uint8), "label")
    with pytest.raises(
        DataError, match="found the values 9, expected values from 1 to 65535 that have a name"
    ):
        write(label_map, tmp_path / "case.seg.dcm", names=NAMES)
    with pytest.raises(DataError, match="not annotated"):
        write(label_map, tmp_path / "case.seg.dcm", names=Labels(NAMES.items, ignore=9))


def test_names_that_no_code_stands_for_are_reported(folder: Path, tmp_path: Path) -> None:
    image = read(folder / "series")
    label_map = image.with_data(np.ones_like(image.data, np.uint8), "label")
    with pytest.warns(DataWarning, match="labels: gizmo: found no code of SNOMED CT"):
        write(label_map, tmp_path / "case.seg.dcm", names=Labels.from_names({"gizmo": 1}))
    item = pydicom.dcmread(tmp_path / "case.seg.dcm").SegmentSequence[0]
    code = item.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeMeaning) == ("99MEDSEG", "gizmo")
    assert item.SegmentAlgorithmType == "SEMIAUTOMATIC"  # its origin is unknown


def test_folder_that_holds_only_a_segmentation_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "1-1.dcm").write_bytes((folder / "case.seg.dcm").read_bytes())
    assert np.array_equal(read_labels(tmp_path / "download").data, labels_on(oblique_grid()).data)
    assert read_grid(tmp_path / "download").shape == (18, 14, 6)


def test_fractional_and_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(folder / "case.seg.dcm")
    dataset.SegmentationType = "FRACTIONAL"
    dataset.save_as(tmp_path / "soft.dcm")
    with pytest.raises(DataError, match="SegmentationType: found FRACTIONAL"):
        read_labels(tmp_path / "soft.dcm")
    dataset.SegmentationType = "BINARY"
    dataset.PixelData = dataset.PixelData[:10]
    dataset.save_as(tmp_path / "short.dcm")
    with pytest.raises(DataError, match="PixelData: found 10 bytes"):
        read_labels(tmp_path / "short.dcm")
    del dataset.SegmentSequence
    dataset.save_as(tmp_path / "none.dcm")
    with pytest.raises(DataError, match="breaks the DICOM standard"):
        read_labels(tmp_path / "none.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    dataset.save_as(tmp_path / "unplaced.dcm")
    with pytest.raises(
        DataError, match=r"unplaced\.dcm: PlanePositionSequence: found none for a frame, .*Export or copy"
    ):
        read_labels(tmp_path / "unplaced.dcm")
    with pytest.raises(DataError, match="found no segmentation"):
        read_segments(sorted((folder / "series").iterdir())[0])


def test_message_where_the_extra_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"found no highdicom.*pip install 'medseg\[dicom\]'"):
        read_labels(folder / "case.seg.dcm")
