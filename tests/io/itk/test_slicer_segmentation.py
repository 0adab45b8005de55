"""Segmentations of 3D Slicer: names, colours and layers in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import DataError
from medseg.io.companions.label_names import label_names_of
from medseg.io.files import read, read_labels, read_segments, stem_of, suffix_of, write
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.dicom_labels import NAMES, labels_on, oblique_grid

LAYERS = """NRRD0004
type: uchar
dimension: 4
sizes: 2 10 12 8
space: left-posterior-superior
space directions: none (1,0,0) (0,1,0) (0,0,2)
space origin: (0,0,0)
kinds: list domain domain domain
encoding: raw
"""


def stored(path: Path, fields: str, layers: np.ndarray) -> Path:
    """Write a file of two layers as 3D Slicer does."""
    path.write_bytes((LAYERS + fields + "\n").encode() + layers.tobytes(order="F"))
    return path


@pytest.fixture
def layers() -> np.ndarray:
    """Two layers in which the value 1 overlaps by 2 x 12 x 8 voxels."""
    layers = np.zeros((2, 10, 12, 8), np.uint8)
    layers[0, 2:6], layers[1, 4:8] = 1, 1
    return layers


def test_label_map_names_and_colours_come_back(tmp_path: Path) -> None:
    label_map = labels_on(oblique_grid())
    write(label_map, tmp_path / "case.seg.nrrd", names=NAMES)
    found = read_labels(tmp_path / "case.seg.nrrd")
    assert found.grid.distance(label_map.grid) < 1e-9
    assert np.array_equal(found.data, label_map.data)
    assert label_names_of(tmp_path / "case.seg.nrrd") == NAMES
    assert (suffix_of("a/case.seg.nrrd"), stem_of("a/case.seg.nrrd")) == (".seg.nrrd", "case")


def test_another_reader_finds_voxels_position_and_fields(tmp_path: Path) -> None:
    label_map = labels_on(oblique_grid("RAS"))
    write(label_map, tmp_path / "case.seg.nrrd", names=NAMES)
    image = sitk.ReadImage(str(tmp_path / "case.seg.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(image).T, label_map.data[0])
    expected = np.diag([-1.0, -1.0, 1.0, 1.0]) @ label_map.grid.affine
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((3, 2, 1)), (expected @ [3, 2, 1, 1])[:3])
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert fields["Segment1_Name"] == "kidney_left"
    assert (fields["Segment1_LabelValue"], fields["Segment1_Layer"]) == ("7", "0")
    assert fields["Segment1_Extent"].split() == [
        str(end) for axis in np.argwhere(label_map.data[0] == 7).T for end in (axis.min(), axis.max())
    ]
    colour = [round(float(part) * 255) for part in fields["Segment0_Color"].split()]
    assert tuple(colour) == NAMES[1].colour


def test_the_same_label_map_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(labels_on(oblique_grid()), tmp_path / f"{name}.seg.nrrd", names=NAMES)
    assert (tmp_path / "a.seg.nrrd").read_bytes() == (tmp_path / "b.seg.nrrd").read_bytes()


def test_overlapping_layers(tmp_path: Path, layers: np.ndarray) -> None:
    fields = (
        "Segment0_Name:=liver\nSegment0_Layer:=0\nSegment0_LabelValue:=1\nSegment0_Color:=0.5 0 1\n"
        "Segment1_Name:=tumour\nSegment1_Layer:=1\nSegment1_LabelValue:=1\n"
    )
    path = stored(tmp_path / "layers.seg.nrrd", fields, layers)
    with pytest.raises(DataError, match=r"overlap \(liver and tumour share 192 voxels\)"):
        read_labels(path)
    assert read(path).channels == 2
    found = read_segments(path)
    assert found.labels.names == ("background", "liver", "tumour")
    assert found.labels[1].colour == (128, 0, 255)
    merged = found.label_map(order=["liver", "tumour"])
    assert np.bincount(merged.data.ravel()).tolist() == [960 - 6 * 96, 2 * 96, 4 * 96]
    write(found.volume, tmp_path / "again.seg.nrrd", names=found.labels)
    again = read_segments(tmp_path / "again.seg.nrrd")
    assert np.array_equal(again.volume.data, found.volume.data)
    assert again.labels == found.labels


def test_layers_without_overlap_are_one_label_map(tmp_path: Path, layers: np.ndarray) -> None:
    layers[1] = 0
    layers[1, 7:9] = 5
    fields = "Segment0_Name:=a\nSegment0_Layer:=0\nSegment0_LabelValue:=1\nSegment1_Name:=b\nSegment1_Layer:=1\nSegment1_LabelValue:=5\n"
    found = read_labels(stored(tmp_path / "layers.seg.nrrd", fields, layers))
    assert np.bincount(found.data.ravel()).tolist() == [960 - 6 * 96, 4 * 96, 0, 0, 0, 2 * 96]


def test_files_of_old_versions_have_a_layer_per_segment(tmp_path: Path, layers: np.ndarray) -> None:
    layers[1, :7] = 0
    path = stored(tmp_path / "old.seg.nrrd", "Segment0_Name:=a\nSegment1_Name:=b\n", layers)
    assert np.bincount(read_labels(path).data.ravel()).tolist() == [960 - 5 * 96, 4 * 96, 96]
    assert label_names_of(path).names == ("background", "a", "b")


def test_segmentation_that_was_cut_is_placed_on_its_image(tmp_path: Path) -> None:
    label_map = labels_on(oblique_grid())
    write(label_map.cropped((1, 1, 1), (12, 9, 3)), tmp_path / "cut.seg.nrrd", names=NAMES)
    placed = read_labels(tmp_path / "cut.seg.nrrd", like=label_map)
    expected = label_map.data.copy()
    expected[0, 13:], expected[:, :, 10:], expected[..., 4:] = 0, 0, 0
    assert np.array_equal(placed.data, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "Segment0_Layer:=2\nSegment0_LabelValue:=1\n",
            "value 1 in layer 2, expected a value from 1 in one of 2 layers",
        ),
        ("Segment0_Layer:=0\nSegment0_LabelValue:=0\n", "value 0 in layer 0"),
        ("Segment0_Layer:=x\n", "expected numbers in Layer"),
        ("Segment0_Color:=1 2\n", "expected numbers in Layer, LabelValue and Color"),
    ],
)
def test_invalid_descriptions_are_refused(
    tmp_path: Path, layers: np.ndarray, fields: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(stored(tmp_path / "bad.seg.nrrd", fields, layers))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    grid = Grid.from_spacing((3, 3, 2))
    with pytest.raises(DataError, match="found the value 9"):
        write(Volume(np.full((1, 3, 3, 2), 9, np.uint8), grid, "label"), tmp_path / "a.seg.nrrd", names=NAMES)
    with pytest.raises(DataError, match="expected label values from 0"):
        write(Volume(np.zeros((1, 3, 3, 2), np.float32), grid), tmp_path / "a.seg.nrrd")
    sheared = grid.affine.copy()
    sheared[1, 2] = 0.4
    with pytest.raises(DataError, match="sheared"):
        write(
            Volume(np.zeros((1, 3, 3, 2), np.uint8), Grid((3, 3, 2), sheared), "label"),
            tmp_path / "a.seg.nrrd",
        )
    assert not list(tmp_path.iterdir())


def test_names_with_letters_that_need_care(tmp_path: Path) -> None:
    names = Labels.from_names({"Leber \\ Müller:=x": 1, "肝": 2})
    label_map = Volume(np.array([[[[0, 1, 2]]]], np.uint8), Grid.from_spacing((1, 1, 3)), "label")
    write(label_map, tmp_path / "a.seg.nrrd", names=names)
    assert label_names_of(tmp_path / "a.seg.nrrd") == names
    assert label_names_of(tmp_path / "absent.seg.nrrd") is None


@pytest.mark.extra("slicerio")
def test_slicerio_reads_and_writes_the_same(tmp_path: Path) -> None:
    import slicerio

    label_map = labels_on(oblique_grid())
    write(label_map, tmp_path / "ours.seg.nrrd", names=NAMES)
    found = slicerio.read_segmentation(str(tmp_path / "ours.seg.nrrd"))
    assert [(one["name"], one["labelValue"]) for one in found["segments"]] == [
        (label.name, label.value) for label in NAMES.foreground
    ]
    assert np.array_equal(found["voxels"], label_map.data[0])
    np.testing.assert_allclose(found["ijkToLPS"], np.diag([-1.0, -1.0, 1.0, 1.0]) @ label_map.grid.affine)
    slicerio.write_segmentation(str(tmp_path / "theirs.seg.nrrd"), found)
    assert np.array_equal(read_labels(tmp_path / "theirs.seg.nrrd").data, label_map.data)
    assert label_names_of(tmp_path / "theirs.seg.nrrd") == NAMES
