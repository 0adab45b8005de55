"""Partially annotated cases and ignored voxels: reading, checking and storing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_label
from medseg.data.patches.prepare_cases import fill_store
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import DataError
from medseg.io.files import write
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

SHAPE = (6, 5, 4)
LABELS = Labels.from_names({"liver": 1, "spleen": 2})
SETTINGS = Preprocessing(channels=(Normalization(),))


@pytest.fixture
def table(tmp_path):
    """Two cases with a labels column; in ``a`` only the liver is annotated, and a slice of ``b`` has the value 9."""
    for name in "ab":
        write(
            Volume(np.ones((1, *SHAPE), np.float32), Grid.from_spacing(SHAPE, (1, 1, 1))),
            tmp_path / f"{name}.nii.gz",
        )
        label = np.zeros((1, *SHAPE), np.uint8)
        label[0, 1], label[0, 3] = 1, 0 if name == "a" else 2
        label[0, 5] = 0 if name == "a" else 9
        write(Volume(label, Grid.from_spacing(SHAPE, (1, 1, 1)), "label"), tmp_path / f"{name}_label.nii.gz")
    rows = [
        "case\timage\tlabel\tlabels",
        "a\ta.nii.gz\ta_label.nii.gz\tliver",
        "b\tb.nii.gz\tb_label.nii.gz\t",
    ]
    (tmp_path / "cases.tsv").write_text("\n".join(rows) + "\n")
    labels = replace(LABELS, ignore=9)
    (tmp_path / "labels.tsv").write_text(labels.to_tsv())
    return tmp_path


def test_a_table_lists_the_annotated_labels(table):
    dataset = read_dataset(table)
    assert [case.annotated for case in dataset.cases] == [("liver",), None]
    assert dataset.labels == replace(LABELS, ignore=9)
    text = (table / "cases.tsv").read_text()
    (table / "cases.tsv").write_text(
        text.replace("\tliver\n", "\tliver; spleen\n").replace("\t\n", "\tspleen,liver\n")
    )
    assert [case.annotated for case in read_dataset(table).cases] == [
        ("liver", "spleen"),
        ("spleen", "liver"),
    ]


def test_a_training_entry_lists_the_annotated_labels(tmp_path):
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).touch()
    values = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "training": [
            {"image": "a.nii", "label": "a.nii", "labels": ["liver"]},
            {"image": "b.nii", "label": "b.nii"},
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    assert [case.annotated for case in read_dataset(tmp_path).cases] == [("liver",), None]
    values["training"][0]["labels"] = "liver"
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"training\[0\]: labels: found 'liver', expected a list of the annotated labels"
    ):
        read_dataset(tmp_path)


def test_a_label_that_was_not_annotated_must_not_occur(table):
    case = replace(read_dataset(table).case("b"), annotated=("liver",))
    with pytest.raises(DataError, match=r"case b: .*found 20 voxels of value 2 \(spleen\), expected none"):
        read_case_label(case, replace(LABELS, ignore=9))


def test_an_unknown_annotated_label_is_refused(table):
    case = replace(read_dataset(table).case("a"), annotated=("livre",))
    with pytest.raises(DataError, match=r"case a: labels: unknown label 'livre'\. Did you mean 'liver'"):
        read_case_label(case, replace(LABELS, ignore=9))


def test_stored_maps_hold_the_possible_labels_of_each_voxel(table):
    dataset = read_dataset(table)
    assert dataset.labels is not None
    a, b = fill_store(table / "store", dataset.cases, dataset.labels, SETTINGS)
    assert set(np.unique(a.label)) == {1, 4}  # 4: background or spleen
    assert (a.label[0, 1] == 1).all()
    assert set(np.unique(b.label)) == {0, 1, 2, 3}
    assert (b.label[0, 5] == 3).all()
    assert b.label.dtype == np.uint8
    assert sorted(b.class_locations) == [0, 1, 2]
    assert not (b.class_locations[0][:, 0] == 5).any()
    assert len(b.class_locations[0]) == 100
    assert sorted(a.class_locations) == [0, 1]
    assert a.has_foreground


def test_cases_are_prepared_again_when_the_annotated_labels_change(table):
    case = read_dataset(table).case("a")
    folders = set()
    for labels, annotated in (
        (LABELS, None),
        (LABELS, ("liver",)),
        (LABELS, ("liver", "spleen")),
        (replace(LABELS, ignore=9), None),
        (LABELS.with_regions({"both": [1, 2]}), None),
    ):
        (stored,) = fill_store(table / "store", [replace(case, annotated=annotated)], labels, SETTINGS)
        folders.add(stored.folder)
    assert len(folders) == 4  # fully annotated, however it is written


def test_many_classes_and_sets_take_two_bytes(table):
    labels = Labels.from_names({f"l{value}": value for value in range(255)})
    case = replace(read_dataset(table).case("a"), annotated=("l1",))
    label_sets = LabelSets.from_annotations(labels, {"a": case.annotated, "c": ("l1", "l2")})
    (stored,) = fill_store(table / "store", [case], labels, SETTINGS, label_sets)
    assert set(np.unique(stored.label)) == {1, 256}
    assert stored.label.dtype == np.uint16


def test_a_case_without_foreground_has_none(table):
    dataset = read_dataset(table)
    empty = Labels.from_names({"liver": 1, "spleen": 2, "kidney": 7}).with_regions({"kidney": [7]})
    (stored,) = fill_store(table / "store", dataset.cases[:1], empty, SETTINGS)
    assert not stored.has_foreground
    assert not stored.class_locations
