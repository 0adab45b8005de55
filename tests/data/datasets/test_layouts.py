"""Layouts: what read_dataset finds in made-up and real folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.data.datasets.cases import ReadingOptions
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.layouts import is_dataset, read_dataset
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.errors import DataError, DataWarning
from tests.helpers.file_trees import write_tree
from tests.helpers.paths import SHARED_FOLDER

SHARED = SHARED_FOLDER / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="real data are not beside the checkout")


def describe(root: Path, **values: Any) -> Path:
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, **values}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def entry(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def msd(root: Path, *ids: str, **values: Any) -> Path:
    write_tree(root, *[f"{folder}/{i}.nii.gz" for folder in ("imagesTr", "labelsTr") for i in ids])
    return describe(root, training=[entry(i) for i in ids], **values)


# Decathlon ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "liver", "2": "spleen"},
        {"spleen": 2, "liver": 1},
        {"liver": [1], "spleen": "2"},
    ],
)
def test_msd(tmp_path, labels):
    msd(tmp_path, "b", "a", labels=labels, modality={"1": "T2", "0": "T1"}, name="Toy")
    content = json.loads((tmp_path / "dataset.json").read_text())
    del content["channel_names"]
    (tmp_path / "dataset.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    dataset = read_dataset(tmp_path)
    assert dataset.name == "Toy"
    assert dataset.ids == ("a", "b")
    assert dataset.channel_names == ("T1", "T2")
    assert dataset.labels is not None
    assert dict(zip(dataset.labels.names, dataset.labels.values, strict=True)) == {
        "background": 0,
        "liver": 1,
        "spleen": 2,
    }
    assert dataset.case("a").label == tmp_path / "labelsTr" / "a.nii.gz"
    assert read_dataset(tmp_path / "dataset.json").ids == dataset.ids


def test_msd_test_images_are_cases_without_label(tmp_path):
    write_tree(tmp_path, "imagesTs/z.nii.gz")
    dataset = read_dataset(msd(tmp_path, "a", test=["./imagesTs/z.nii.gz"]))
    assert dataset.ids == ("a", "z")
    assert [case.id for case in dataset.labelled_cases] == ["a"]


def test_nnunet_v1_lists_images_without_channel_numbers(tmp_path):
    write_tree(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    describe(tmp_path, training=[entry("a")], channel_names={"0": "T1", "1": "T2"})
    assert [p.name for p in read_dataset(tmp_path).case("a").images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_list_of_images_is_one_file_per_channel(tmp_path):
    write_tree(tmp_path, "a_0000.nii", "a_0001.nii")
    describe(tmp_path, training=[{"image": ["a_0000.nii", "a_0001.nii"]}])
    assert len(read_dataset(tmp_path).case("a").images) == 2


@pytest.mark.parametrize(
    "name", ["/etc/hosts.nii", "../secret.nii", "a/../../secret.nii", "C:/x.nii", "..\\x.nii", "", 5, "a\0b"]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    root = tmp_path / "set"
    root.mkdir()
    write_tree(tmp_path, "secret.nii")
    describe(root, training=[{"image": name}])
    with pytest.raises(DataError, match=r"training\[0\]: image: .*(outside|expected a path)"):
        read_dataset(root)


def test_paths_with_dots_that_stay_inside_are_read(tmp_path):
    write_tree(tmp_path, "x/a.nii")
    describe(tmp_path, training=[{"image": "./x/../x/a.nii"}])
    assert read_dataset(tmp_path).case("a").images == (tmp_path / "x" / "a.nii",)


def test_duplicate_ids_raise(tmp_path):
    write_tree(tmp_path, "x/a.nii", "y/a.nii.gz")
    describe(tmp_path, training=[{"image": "x/a.nii"}, {"image": "y/a.nii.gz"}])
    with pytest.raises(DataError, match="found two cases 'a'"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": [2]}, "regions whole, core and regions_class_order None"),
        ({"background": 0, "liver": 1, "ignore": 1}, "ignore: found 1, expected a value that no label has"),
        ({"background": 0, "liver": 1, "ignore": [2, 3]}, "expected one value"),
        ({"background": 0, "whole": [1, "x"]}, "expected a whole number"),
        ({"background": 0, "liver": 1.5}, "expected a whole number"),
        ({"background": 0, "liver": True}, "expected a whole number"),
        ({"background": 0, "liver": -1}, "expected a whole number"),
        ({"background": 0, "a": 1, "b": 1}, "expected unique names and values"),
        ({"0": "background", "1": "a", "2": "a"}, "'a' for several values"),
        ([], "expected {"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, labels, message):
    msd(tmp_path, "a", labels=labels)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "dataset.json: labels" in str(caught.value)


def test_regions_and_ignore_of_nnunet(tmp_path):
    table = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    msd(tmp_path, "a", labels=table, regions_class_order=[1, 2, 3])
    labels = read_dataset(tmp_path).labels
    assert (labels.names, labels.values) == (("background", "label_1", "label_2", "enhancing"), (0, 1, 2, 3))
    assert [(r.name, r.values, r.output_value) for r in labels.regions] == [
        ("whole", (1, 2, 3), 1),
        ("core", (2, 3), 2),
        ("enhancing", (3,), 3),
    ]
    assert labels.ignore == 4


def test_invalid_order_of_regions_raises(tmp_path):
    msd(tmp_path, "a", labels={"whole": [1, 2], "core": 2}, regions_class_order=[1])
    with pytest.raises(DataError, match=r"dataset\.json: labels: .*expected a list of 2 output values"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("names", [{}, {"1": "CT"}, ["CT"], None])
def test_channel_names_must_be_numbered_from_zero(tmp_path, names):
    msd(tmp_path, "a", channel_names=names)
    with pytest.raises(DataError, match=r"channel_names: .*numbered from 0"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("training", ["a", [7], [{"label": "a"}], [{"image": []}]])
def test_malformed_lists(tmp_path, training):
    describe(tmp_path, training=training)
    with pytest.raises(DataError, match=r"dataset\.json: training"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ('{"a": NaN}', "NaN"),
        ("[]", "found a list"),
        ("[" * 100_000, "nested too deeply|no valid JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_damaged_json(tmp_path, text, message):
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "dataset.json" in str(caught.value)


# nnU-Net --------------------------------------------------------------------------------------------------


def test_nnunet_raw_scan(tmp_path):
    names = [f"imagesTr/{i}_{c}.nrrd" for i in ("b_1", "a_2") for c in ("0000", "0001")]
    write_tree(
        tmp_path, *names, "labelsTr/a_2.nrrd", "labelsTr/b_1.nrrd", "imagesTr/._a_2_0000.nrrd", "imagesTs/x"
    )
    describe(tmp_path, file_ending=".nrrd", channel_names={"0": "T1", "1": "T2"})
    dataset = read_dataset(tmp_path)
    assert dataset.ids == ("a_2", "b_1")
    assert [path.name for path in dataset.case("b_1").images] == ["b_1_0000.nrrd", "b_1_0001.nrrd"]


def test_nnunet_raw_lists_every_absent_partner(tmp_path):
    write_tree(
        tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0001.nii.gz", "labelsTr/b.nii.gz", "labelsTr/c.nii.gz"
    )
    describe(tmp_path, file_ending=".nii.gz", channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(DataError, match="5 files are missing") as caught:
        read_dataset(tmp_path)
    for name in ("a_0001", "b_0000", "c_0000", "c_0001", "labelsTr/a.nii.gz"):
        assert name in str(caught.value).replace("\\", "/")


def test_nnunet_table_of_cases(tmp_path):
    write_tree(tmp_path, "x/one.nii", "y/two.nii")
    describe(tmp_path, dataset={"c1": {"images": ["x/one.nii"], "label": "y/two.nii"}})
    case = read_dataset(tmp_path).case("c1")
    assert (case.images, case.label) == ((tmp_path / "x" / "one.nii",), tmp_path / "y" / "two.nii")


@pytest.mark.parametrize("table", [[], {"c1": "x"}, {"c1": {"images": "x"}}, {"c1": {"images": ["../x"]}}])
def test_malformed_table_of_cases(tmp_path, table):
    describe(tmp_path, dataset=table)
    with pytest.raises(DataError, match=r"dataset\.json: dataset"):
        read_dataset(tmp_path)


def test_nnunet_needs_its_file_ending(tmp_path):
    with pytest.raises(DataError, match="file_ending"):
        read_dataset(describe(tmp_path))


def test_empty_dataset_is_an_error(tmp_path):
    describe(tmp_path, file_ending=".nii.gz")
    with pytest.raises(DataError, match="found no case of layout nnunet"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("listed", [[], [entry("a_0000")], ["a"]])
def test_nnunet_does_not_use_the_list_of_the_decathlon(tmp_path, listed):
    names = [f"imagesTr/{i}_{c}.nii.gz" for i in "ab" for c in ("0000", "0001")]
    write_tree(tmp_path, *names, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    describe(tmp_path, file_ending=".nii.gz", channel_names={"0": "T1", "1": "T2"}, training=listed)
    dataset = read_dataset(tmp_path)
    assert dataset.ids == ("a", "b")
    assert len(dataset.case("a").images) == 2


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_nnunet_natural_images_hold_all_channels(tmp_path, ending):
    write_tree(
        tmp_path, *(f"imagesTr/{i}_0000{ending}" for i in "ab"), *(f"labelsTr/{i}{ending}" for i in "ab")
    )
    channels = {"0": "R", "1": "G", "2": "B"}
    describe(tmp_path, file_ending=ending, channel_names=channels)
    assert [case.images for case in read_dataset(tmp_path).cases] == [
        (tmp_path / "imagesTr" / f"{i}_0000{ending}",) for i in "ab"
    ]
    assert [case.id for case in read_images(tmp_path / "imagesTr", channels=3)] == ["a", "b"]
    write_tree(tmp_path, f"imagesTr/a_0001{ending}")
    with pytest.raises(DataError, match="3 files are missing"):
        read_dataset(tmp_path)


def test_nnunet_endings_without_a_dot_or_of_other_files(tmp_path):
    write_tree(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    assert read_dataset(describe(tmp_path, file_ending="nii.gz")).ids == ("a",)
    for ending in (".nii", ".nrrd"):
        with pytest.raises(
            DataError, match=rf"file_ending: found '{ending}', expected \.nii\.gz like the files in imagesTr"
        ):
            read_dataset(describe(tmp_path, file_ending=ending))


def test_files_elsewhere_are_read_where_the_user_allows_it(tmp_path):
    write_tree(tmp_path, "store/a.nii", "store/l.nii", "set/x", "other/a.nii")
    root = tmp_path / "set"
    inside = ReadingOptions(files_root=str(tmp_path / "store"))
    absolute = {"c": {"images": [str(tmp_path / "store" / "a.nii")], "label": "../store/l.nii"}}
    describe(root, dataset=absolute)
    with pytest.raises(DataError, match=r"c: images: .* is outside of .*--files-root \(data\.files_root"):
        read_dataset(root)
    case = read_dataset(root, reading=inside).case("c")
    assert [path.resolve() for path in case.files] == [
        tmp_path / "store" / name for name in ("a.nii", "l.nii")
    ]
    for name in (
        "../other/a.nii",
        "../store/../other/a.nii",
        str(tmp_path / "other" / "a.nii"),
        "../storeroom/a.nii",
    ):
        describe(root, dataset={"c": {"images": [name]}})
        with pytest.raises(DataError, match="is outside of"):
            read_dataset(root, reading=inside)
    describe(root, training=[{"image": "../store/a.nii", "label": "../store/l.nii"}])
    assert read_dataset(root, reading=inside).ids == ("a",)
    (root / "dataset.json").unlink()
    (root / "cases.tsv").write_text(
        f"case\timage\tlabel\nc\t../store/a.nii\t{tmp_path / 'store' / 'l.nii'}\n"
    )
    assert read_dataset(root, reading=inside).ids == ("c",)
    with pytest.raises(DataError, match=r"line 2: image: .* is outside of"):
        read_dataset(root)


def test_validation_cases_of_a_datalist_are_not_lost(tmp_path):
    write_tree(tmp_path, "imagesTr/v.nii.gz", "labelsTr/v.nii.gz", "imagesTr/w.nii.gz")
    msd(tmp_path, "a", validation=[entry("v"), "imagesTr/w.nii.gz"])
    dataset = read_dataset(tmp_path)
    assert dataset.ids == ("a", "v", "w")
    assert [case.id for case in dataset.labelled_cases] == ["a", "v"]


def test_another_number_of_training_cases_is_reported(tmp_path):
    msd(tmp_path, "a", "b", numTraining=3)
    with pytest.warns(DataWarning, match=r"dataset\.json: numTraining: found 3, expected 2"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("text", ["{'a': 1}", '{"a": 1,}', "// note\n{}", '{"a": ' + "1" * 5000 + "}"])
def test_a_broken_description_is_not_taken_for_images(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(
        DataError,
        match=r"dataset\.json: (line \d+, column \d+: found no valid JSON|found a whole number of more than)",
    ):
        is_dataset(tmp_path)


# Choice of layout -----------------------------------------------------------------------------------------


def test_nothing_recognised(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"found no dataset\.json, cases\.tsv or sub-\* folder"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="no such file or folder, expected a dataset"):
        read_dataset(tmp_path / "absent")


def test_layout_by_name(tmp_path):
    write_tree(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    describe(tmp_path, training=[], file_ending=".nii.gz")
    assert read_dataset(tmp_path, "nnunet").ids == ("a",)
    with pytest.raises(DataError, match="Did you mean 'nnunet'"):
        read_dataset(tmp_path, "nnunett")  # type: ignore[arg-type]


# Images to predict ----------------------------------------------------------------------------------------


@real
def test_real_decathlon_task():
    dataset = read_dataset(SHARED / "Task04_Hippocampus")
    assert len(dataset.labelled_cases) == 205
    assert dataset.channel_names == ("MRI",)
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "Anterior", "Posterior")
    for case_id in ("hippocampus_001", "hippocampus_003"):  # the second label map is stored as float
        label = read_case_label(dataset.case(case_id), dataset.labels)
        assert np.unique(label.data).tolist() == [0, 1, 2]
        assert read_case_image(dataset.case(case_id), 1).grid.shape == label.grid.shape


@real
def test_real_nnunet_raw():
    dataset = read_dataset(SHARED / "multimodal_mr")
    assert dataset.ids == ("patient19", "patient26")
    assert dataset.channel_names == ("FLAIR", "T1", "T1POST", "T2")
    image = read_case_image(dataset.case("patient26"), 4)
    assert image.data.shape == (4, 182, 218, 182)
    assert dataset.labels is not None
    label = read_case_label(dataset.case("patient26"), dataset.labels, image.grid)
    assert int(label.data.sum()) == 8227


@real
def test_real_broken_dataset():
    with pytest.raises(DataError, match="3 files are missing") as caught:
        read_dataset(SHARED / "broken_dataset")
    for name in ("imagesTr/hippocampus_010", "labelsTr/hippocampus_118", "imagesTr/hippocampus_281"):
        assert name in str(caught.value)
