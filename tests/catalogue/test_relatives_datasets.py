"""Relatives of reported faults of datasets: lists and counts, tables of labels, natural images and voxel sizes next to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from nibabel.nifti1 import Nifti1Extension
from PIL import Image

from medseg.check.check_paths import check_paths
from medseg.data.datasets.cases import Case, ReadingOptions
from medseg.data.datasets.dataset_json import parse_labels
from medseg.data.datasets.layouts import list_cases, read_dataset
from medseg.data.datasets.read_case import read_case_label
from medseg.errors import DataError, DataWarning, collected_warnings
from medseg.io.companions.label_names import label_names_of
from medseg.io.files import read, read_grid, read_labels
from medseg.labels.label_table import Labels

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 200, (20, 24)).astype(np.uint8)
STACK = RNG.integers(0, 200, (5, 8, 9)).astype(np.uint8)


def entry(case: str) -> dict[str, str]:
    return {"image": f"imagesTr/{case}.nii", "label": f"labelsTr/{case}.nii"}


def decathlon(root: Path, **values: Any) -> Path:
    """Write four cases, of which the list ``training`` has two."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
        for case in "abcd":
            nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), root / folder / f"{case}.nii")
    description = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "a"},
        "numTraining": 2,
        "training": [entry("a"), entry("b")],
    }
    (root / "dataset.json").write_text(json.dumps(description | values))
    return root


@pytest.mark.parametrize(
    ("values", "labelled", "note"),
    [
        ({"validation": [entry("c"), entry("d")]}, "abcd", ""),  # as in the file of AMOS22
        ({"validation": [entry("c"), entry("d")], "numTraining": 4}, "abcd", ""),
        ({"validation": [entry("c")], "numTraining": 9}, "abc", "numTraining: found 9, expected 3"),
        ({"validation": [{"image": entry("c")["image"]}]}, "ab", ""),
        ({"validation": None}, "ab", ""),
        ({"test": [entry("c"), entry("d")["image"]]}, "ab", "test: found 1 label map, expected images only"),
        (
            {"val": [entry("c")]},
            "ab",
            "val: found a list of 1 case, expected the names training, validation, test",
        ),
        ({"Validation": [entry("c"), entry("d")]}, "ab", "Validation: found a list of 2 cases"),
    ],
)
def test_lists_of_cases_are_read_or_named(
    tmp_path: Path, values: dict[str, Any], labelled: str, note: str
) -> None:
    with collected_warnings() as notes:
        dataset = read_dataset(decathlon(tmp_path, **values))
    assert [case.id for case in dataset.labelled_cases] == list(labelled)
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_other_lists_than_those_of_cases_are_not_reported(tmp_path: Path) -> None:
    with collected_warnings() as notes:
        read_dataset(decathlon(tmp_path, authors=["x"], releases=[{"date": "2020"}], history=[]))
    assert not notes


@pytest.mark.parametrize("name", ["../../x.nii", "/etc/passwd", "$HOME/x.nii", "C:\\x.nii", 7])
@pytest.mark.parametrize("key", ["validation", "test"])
def test_lists_cannot_leave_the_dataset(tmp_path: Path, key: str, name: object) -> None:
    with pytest.raises(DataError, match=rf"dataset\.json: {key}\[0\]: (image: )?found .*expected a path"):
        read_dataset(decathlon(tmp_path, **{key: [{"image": name}]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value\tname\n-1\tx\n", r"labels\.tsv: line 2: value: found '-1', expected a whole number from 0"),
        ("value\tname\n1\ta\n" + "9" * 5000 + "\tx\n", r"line 3: value: found '9{40}\.\.\.', expected"),
        ("value\tname\n1_0\tx\n", r"line 2: value: found '1_0'"),
        ("value\tname\n٢\tx\n", r"line 2: value: found '٢'"),
        ("value\tname\n1.0\tx\n", r"line 2: value: found '1\.0'"),
        ("value\tname\n1\t\n", r"line 2: name: found an empty cell"),
        ("value\tname\n1\tbackground\n", r"labels\.tsv: labels: found values \[1\], expected background = 0"),
        (
            "value\tname\tkind\n1\ta\t\n9\tr\tregion 1\n",
            r"labels\.tsv: regions: r: found the unknown value 9",
        ),
        ("value\tname\tcolour\n1\ta\t#12345g\n", r"line 2: colour: found '#12345g', expected six"),
    ],
)
def test_tables_of_labels_are_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        Labels.from_tsv(tmp_path / "labels.tsv")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / folder / "a.nii")
    (found,) = check_paths([tmp_path]).findings
    assert (found.code, found.file) == ("DATASET_UNREADABLE", "labels.tsv")
    assert found.found
    assert found.expected != "a valid dataset"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"9" * 5000: "a", "0": "b"}, "expected a whole number from 0"),
        ({"a": "9" * 5000}, "expected a whole number from 0"),
        ({"a": 2**31}, "expected a whole number from 0"),
        ({"a": 1.5}, "found 1.5, expected a whole number"),
        ({"a": True}, "found True, expected a whole number"),
        ({"liver": 1, "liver ": 2}, "names that differ only by spaces"),
        ({"li\x1b[2Jver": 1}, "no tab, line break or control character"),
        ({"li\x85ver": 1}, "no tab, line break or control character"),
        ({"\ud800": 1}, "no tab, line break or control character"),
        ({"a\u2028b": 1}, "no tab, line break or control character"),
    ],
)
def test_labels_that_no_table_can_hold_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^d\.json: labels: .*{message}"):
        parse_labels({"background": 0, **table} if "0" not in table else table, "d.json: labels")


def header_table(path: Path, *labels: str) -> Path:
    image = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    content = f"<LabelTable>{''.join(labels)}</LabelTable>".encode()
    image.header.extensions.append(Nifti1Extension(0, content))
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (['<Label Key="1">a</Label>', '<Label Key="1">b</Label>'], "found the value 1 twice"),
        (['<Label Key="1_0">a</Label>'], "found the value '1_0'"),
        ([f'<Label Key="{"9" * 5000}">a</Label>'], "found the value '99999999999999999999'"),
        (["<Label>a</Label>"], "found the value ''"),
        (['<Label Key="1" Red="nan" Green="0" Blue="0">a</Label>'], r"found the colour \['nan', '0', '0'\]"),
        (["<a>" * 100_000], "header extension with label names: found .*it is ignored"),
    ],
)
def test_tables_in_headers_that_cannot_be_understood_are_named(
    tmp_path: Path, labels: list[str], message: str
) -> None:
    path = header_table(tmp_path / "l.nii", *labels)
    with pytest.warns(DataWarning, match=message):
        assert label_names_of(path) is None


def test_names_in_headers_stay_apart_and_printable(tmp_path: Path) -> None:
    names = ("a", "a (3)", "a", "li\x9b2Jver", "t\u202eumour")
    labels = [f'<Label Key="{value}">{name}</Label>' for value, name in enumerate(names, start=1)]
    labels += ['<Label Key="99999999999">far</Label>']
    with pytest.warns(DataWarning, match=r"names of the values \[99999999999\], expected values from 1 to"):
        found = label_names_of(header_table(tmp_path / "l.nii", *labels))
    assert found is not None
    assert found.values == (0, 1, 2, 3, 4, 5)
    assert found.names[1:] == ("a", "a (3)", "a (3) (3)", r"li\x9b2Jver", r"t\u202eumour")


@pytest.mark.parametrize("mode", ["L", "1", "P"])
@pytest.mark.parametrize("suffix", [".bmp", ".png"])
def test_grey_bitmaps_have_one_channel(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(GREY, mode="P") if mode == "P" else Image.fromarray(GREY).convert(mode)
    if mode == "P":
        image.putpalette([7 * value % 256 for value in range(768)])
    image.save(tmp_path / f"a{suffix}")
    rows = GREY if mode != "1" else np.asarray(image).astype(np.uint8) * 255
    assert read(tmp_path / f"a{suffix}").channels == (3 if mode == "P" else 1)
    assert np.array_equal(read_labels(tmp_path / f"a{suffix}").data[0, :, :, 0].T, rows)


def test_a_damaged_grey_bitmap_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").write_bytes((tmp_path / "a.bmp").read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.bmp: not readable .*Copy the file again"):
        read(tmp_path / "a.bmp")


@pytest.mark.parametrize(
    ("ending", "name"), [(".png", "c_0000.PNG"), ("png", "c_0000.Png"), (".PNG", "c_0000.png")]
)
def test_endings_in_other_letter_case_are_named(tmp_path: Path, ending: str, name: str) -> None:
    (tmp_path / "imagesTr").mkdir()
    Image.fromarray(GREY).save(tmp_path / "imagesTr" / name, format="png")
    values = {
        "channel_names": {"0": "R"},
        "labels": {"background": 0},
        "numTraining": 1,
        "file_ending": ending,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=rf"file_ending: found '\.?{ending}', expected \.{name[-3:]} like the files"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        ({"c_0000.bmp": (20, 24, 3)}, 3),
        ({"c_0000.png": (20, 24), "c_0001.png": (20, 24), "c_0002.png": (20, 24)}, 3),
        ({"c_0000.png": (20, 24)}, 1),
    ],
)
def test_colours_are_in_one_file_or_in_several(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], names: int
) -> None:
    (tmp_path / "imagesTr").mkdir()
    for name, shape in shapes.items():
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "imagesTr" / name)
    values = {
        "channel_names": {str(number): f"c{number}" for number in range(names)},
        "labels": {"background": 0, "a": 1},
        "numTraining": 1,
        "file_ending": Path(next(iter(shapes))).suffix,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    (case,) = list_cases(tmp_path).cases
    assert [image.name for image in case.images] == list(shapes)


@pytest.mark.parametrize(
    ("spacing", "depth", "expected"),
    [
        ([1, 2], 5, None),
        ([1, 2], 1, (2, 1, 1)),
        ([1, -2, 3], 5, None),
        (["1", "2", "3"], 5, None),
        ([True, True, True], 5, None),
        ("1,2,3", 5, None),
        ([7.6, 7.6, 80.0], 5, (80.0, 7.6, 7.6)),
    ],
)
@pytest.mark.parametrize("name", ["c_0000.tif", "c_0000.ome.tif", "c.tiff"])
def test_voxel_sizes_next_to_a_tiff(
    tmp_path: Path, spacing: object, depth: int, expected: Any, name: str
) -> None:
    axes = {"axes": "ZYX"[-2 if depth == 1 else -3 :]}
    tifffile.imwrite(tmp_path / name, STACK[:depth].squeeze(), photometric="minisblack", metadata=axes)
    (tmp_path / "c.json").write_text(json.dumps({"spacing": spacing}))
    if expected is None:
        wanted = r"two sizes \(y, x\) or three \(z, y, x\)" if depth == 1 else r"three sizes \(z, y, x\)"
        with pytest.raises(DataError, match=rf"c\.json: spacing: found .*expected {wanted} above 0 in mm"):
            read_grid(tmp_path / name)
    else:
        assert read_grid(tmp_path / name).spacing == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "c.tif",
            {"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 4, "unit": "mm", "axes": "ZYX"}},
        ),
        (
            "c.ome.tif",
            {"metadata": {"axes": "ZYX", "PhysicalSizeX": 500, "PhysicalSizeY": 500, "PhysicalSizeZ": 4000}},
        ),
    ],
)
@pytest.mark.parametrize(
    ("spacing", "warned"), [([4, 0.5, 0.5], False), ([1, 2, 3], True), ([4, 0.5, 0.6], True)]
)
def test_voxel_sizes_that_contradict_each_other_are_named(
    tmp_path: Path, name: str, options: dict[str, Any], spacing: list[float], warned: bool
) -> None:
    tifffile.imwrite(tmp_path / name, STACK, **options)
    (tmp_path / "c.json").write_text(json.dumps({"spacing": spacing}))
    with collected_warnings() as notes:
        assert read_grid(tmp_path / name).spacing == pytest.approx(spacing[::-1])
    assert ["found 0.5x0.5x4 mm" in note for note in notes] == [True] * warned


def test_a_voxel_size_that_only_the_label_map_has_is_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "i.tif", STACK)
    tifffile.imwrite(tmp_path / "l.tif", STACK // 100)
    (tmp_path / "l.json").write_text('{"spacing": [4, 0.5, 0.5]}')
    case = Case("c", (tmp_path / "i.tif",), tmp_path / "l.tif", reading=ReadingOptions())
    with collected_warnings() as notes:
        assert read_case_label(case, Labels.from_names({"a": 1})).grid.spacing == (1, 1, 1)
    assert "i.tif: voxel size: found none, expected 0.5x0.5x4 mm as in" in notes[0]


@pytest.mark.parametrize(
    ("shape", "channels"), [((4, 4, 4, 20), 20), ((4, 4, 4, 2), 2), ((4, 4, 4), 1), ((4, 4, 4, 1), 1)]
)
def test_several_volumes_in_a_loose_file_are_named(
    tmp_path: Path, shape: tuple[int, ...], channels: int
) -> None:
    nib.save(nib.Nifti1Image(RNG.normal(size=shape), np.eye(4)), tmp_path / "a.nii")
    found = [one.found for one in check_paths([tmp_path / "a.nii"]).findings]
    assert found == [f"{channels} channels"] * (channels > 1)


def test_a_label_map_without_its_image_is_compared_with_the_others(tmp_path: Path) -> None:
    decathlon(tmp_path, training=[entry(case) for case in "abcd"], numTraining=4)
    for number, case in enumerate("abcd"):
        image = nib.Nifti1Image(RNG.normal(size=(9, 9, 9)), np.eye(4))
        nib.save(image, tmp_path / "imagesTr" / f"{case}.nii")
        labels = np.zeros((60, 60, 60) if case == "d" else (9, 9, 9), np.uint8)
        labels[number, 2:5] = 1
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "labelsTr" / f"{case}.nii")
    (tmp_path / "imagesTr" / "d.nii").unlink()
    found = {one.code: one.file for one in check_paths([tmp_path]).findings}
    assert found == {"IMAGE_MISSING": "imagesTr/d.nii", "SHAPE_OUTLIER": "labelsTr/d.nii"}
