"""Relatives of reported faults: neighbouring inputs that nobody reported, and their right answers."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from medseg.cli.main import main
from medseg.data.datasets.cases import Case
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.errors import DataError, collected_warnings
from medseg.io.files import read, read_grid, read_labels
from medseg.labels.label_table import Labels
from tests.helpers.dicom_series import Series

RNG = np.random.default_rng(0)


def rows(*shape: int, dtype: Any = np.uint16) -> np.ndarray[Any, Any]:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 100, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((6, 40, 30), np.uint16, {"planarconfig": "separate", "tile": (16, 16)}),
        ((40, 30, 2), np.float32, {"planarconfig": "contig", "compression": "zlib"}),
        ((40, 30, 5), np.uint8, {"planarconfig": "contig", "bigtiff": True}),
        ((40, 30, 7), np.int16, {"planarconfig": "contig", "byteorder": ">"}),
        ((40, 30), np.uint32, {"tile": (16, 16)}),
        ((40, 30), np.int16, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        ((40, 30), np.float16, {"tile": (16, 16)}),
    ],
)
def test_tiff_of_other_channels_types_and_tiles(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, options: dict[str, Any]
) -> None:
    values = rows(*shape, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", **options)
    found = read(tmp_path / "a.tif").data[..., 0]
    channels = (
        values[None]
        if values.ndim == 2
        else values
        if options["planarconfig"] == "separate"
        else np.moveaxis(values, -1, 0)
    )
    assert np.array_equal(found.transpose(0, 2, 1), channels.astype(found.dtype))
    assert found.dtype.itemsize >= np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("name", "options", "spacing"),
    [
        ("a.ome.tif", {"metadata": {"axes": "ZYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 500, "PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 2000, "PhysicalSizeZUnit": "µm"}}, (0.5, 0.5, 2)),
        ("a.tif", {"imagej": True, "resolution": (0.002, 0.002), "metadata": {"axes": "ZYX", "spacing": 2000, "unit": "um"}}, (0.5, 0.5, 2)),
        ("a.tif", {"imagej": True, "resolution": (20, 20), "metadata": {"axes": "ZYX", "spacing": 0.2, "unit": "cm"}}, (0.5, 0.5, 2)),
    ],
)  # fmt: skip
def test_units_of_tiff_stacks(
    tmp_path: Path, name: str, options: dict[str, Any], spacing: tuple[float, ...]
) -> None:
    tifffile.imwrite(tmp_path / name, rows(5, 8, 9), **options)
    assert read_grid(tmp_path / name).spacing == pytest.approx(spacing)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.bmp", {"dpi": (150, 150)}), ("a.jpg", {"dpi": (299, 301)}), ("a.tif", {"dpi": (72, 72)})],
)
def test_prints_of_any_resolution_fit_their_masks(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(rows(20, 24, dtype=np.uint8)).save(tmp_path / name, **options)
    mask = (rows(20, 24, dtype=np.uint8) > 99).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    case = Case("a", (tmp_path / name,), tmp_path / "m.png")
    image = read_case_image(case)
    assert np.array_equal(
        read_case_label(case, Labels.from_names({"a": 1}), image.grid).data[0, :, :, 0].T, mask
    )


@pytest.mark.parametrize("shift", [0.2, 1.0])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 50.0])
def test_grids_match_within_a_part_of_a_voxel_whatever_its_size(
    tmp_path: Path, shift: float, unit: float
) -> None:
    affine = np.diag([unit, unit, unit, 1.0])
    moved = affine.copy()
    moved[1, 3] = shift * unit
    for name, place in (("i.nii", affine), ("l.nii", moved)):
        nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), place), tmp_path / name)
    with pytest.raises(DataError, match="not on the grid of"):
        read_case_label(Case("c", (tmp_path / "i.nii",), tmp_path / "l.nii"), Labels.from_names({"a": 1}))


@pytest.mark.parametrize(
    ("slot", "cut"), [(0, -2), (4, -1), (2, -90), (4, 131), (0, 132), (4, 140), (0, 250), (4, 400), (0, 600)]
)
def test_slices_of_which_bytes_are_missing(tmp_path: Path, slot: int, cut: int) -> None:
    folder = Series(tmp_path / "ct", 5).save()
    path = sorted(folder.iterdir())[slot]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"{path.name}.*[Cc]opy"):
        read(folder)


@pytest.mark.parametrize("size", [1e30, 1e-30, 250.0])
def test_absurd_voxel_sizes_are_refused_before_work(tmp_path: Path, size: float) -> None:
    from medseg.data.preprocessing.prepare import Preprocessing, prepare

    nib.save(nib.Nifti1Image(rows(20, 22, 24), np.diag([size, size, size, 1.0])), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"voxel size|affine"):
        prepare(read(tmp_path / "a.nii"), Preprocessing(spacing=(1, 1, 1)), "a.nii")


@pytest.mark.parametrize(
    "content",
    [
        b"{'labels': {}}",
        '{"labels": {}}'.encode("utf-16"),
        b'{"labels": {} // x\n}',
        b'{"a": Infinity}',
        b"[1, 2]",
        b"",
    ],
)
def test_inspect_names_the_mistake_in_dataset_json(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_bytes(content)
    assert main(["inspect", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "dataset.json" in told
    assert "DICOM" not in told


@pytest.mark.parametrize(
    "names", [("Łódź", "Lódz"), ("скан1", "скан2"), ("a b", "a_b"), ("名", "前"), ("é", "e"), ("🙂", "🙃")]
)
def test_names_of_any_script_stay_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    assert {unicodedata.normalize("NFC", case.id) for case in read_images(tmp_path)} == set(names)


@pytest.mark.parametrize(("gap", "digits"), [(0.7, 1), (1.25, 1), (0.625, 2), (3.3333, 1)])
def test_positions_rounded_by_the_scanner_are_even(tmp_path: Path, gap: float, digits: int) -> None:
    series = Series(tmp_path / "ct", 12)
    for number, one in enumerate(series.slices):
        one.ImagePositionPatient = [-20.5, 10, round(100 + gap * number, digits)]
    assert read(series.save()).grid.spacing[2] == pytest.approx(gap, rel=0.02)


@pytest.mark.parametrize("volumes", [2, 3, 5])
def test_series_of_several_volumes_are_named_as_such(tmp_path: Path, volumes: int) -> None:
    series = Series(tmp_path / "ct", 4 * volumes)
    for number, one in enumerate(series.slices):
        one.ImagePositionPatient = [-20.5, 10, 100 + 2.5 * (number % 4)]
    with pytest.raises(DataError, match=rf"found {volumes} volumes at the same 4 places, expected one"):
        read(series.save())


@pytest.mark.parametrize("modality", ["RTPLAN", "RTSTRUCT", "SR", "PR"])
def test_other_objects_beside_a_series_do_not_disturb_it(tmp_path: Path, modality: str) -> None:
    folder = Series(tmp_path / "ct", 6).save()
    other = Series(tmp_path / "other", 1).slices[0]
    other.Modality = modality
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.5"
    for tag in (
        "PixelData",
        "Rows",
        "Columns",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
    ):
        delattr(other, tag)
    other.save_as(folder / "plan.dcm", enforce_file_format=True)
    with collected_warnings():
        assert read(folder).grid.shape == (8, 6, 6)


@pytest.mark.parametrize(
    "training", [[], [{"image": "imagesTr/old_0000.nii.gz", "label": "x"}], "none", None]
)
def test_nnunet_folders_ignore_other_keys(tmp_path: Path, training: object) -> None:
    for name in (
        "imagesTr/a_0000.nii.gz",
        "imagesTr/b_0000.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / name)
    values = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(
        json.dumps({**values, "training": training, "validation": training})
    )
    with collected_warnings():
        assert [case.id for case in read_dataset(tmp_path).cases] == ["a", "b"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_labels_are_shown_with_their_number(tmp_path: Path, value: float) -> None:
    data = np.zeros((4, 4, 4))
    data[1, 2, 3] = value
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "l.nii")
    with pytest.raises(DataError, match=r"label values: found .* \(1 voxel\), the first at \(1, 2, 3\)"):
        read_labels(tmp_path / "l.nii")
