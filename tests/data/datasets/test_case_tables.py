"""Datasets as a table of cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError
from tests.helpers.file_trees import write_tree


def table(root: Path, *rows: str) -> Path:
    write_tree(root, "a.nii", "b.nii", "sub/c.nii", "l.nii")
    (root / "cases.tsv").write_text("\n".join(rows) + "\n")
    return root


def test_table(tmp_path):
    table(
        tmp_path,
        "case\tsubject\timage_T1\timage_T2\tlabel",
        "one\tp1\ta.nii\tb.nii\tl.nii",
        "",
        "two\tp1\tb.nii\tsub/c.nii\t",
    )
    (tmp_path / "labels.tsv").write_text("value\tname\n1\tliver\n")
    dataset = read_dataset(tmp_path)
    assert dataset.channel_names == ("T1", "T2")
    assert dataset.case("one").label == tmp_path / "l.nii"
    assert dataset.case("two").label is None
    assert {case.subject for case in dataset.cases} == {"p1"}
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "liver")
    assert read_dataset(tmp_path / "cases.tsv").ids == dataset.ids


def test_smallest_table(tmp_path):
    dataset = read_dataset(table(tmp_path, "image\tcase", "a.nii\tone"))
    assert dataset.channel_names == ("image",)
    assert dataset.case("one").subject == "one"
    assert dataset.labels is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["case\timage\tlable", "a\ta.nii\tl.nii"], "unknown column 'lable'. Did you mean 'label'"),
        (["case\timage\timage", "a\ta.nii\tb.nii"], "doubled column 'image'"),
        (["case\tlabel", "a\tl.nii"], "either image or image_CHANNEL"),
        (["image", "a.nii"], "expected case"),
        (["case\timage\timage_T1", "a\ta.nii\tb.nii"], "either image or image_CHANNEL"),
        (["case\timage", "a\ta.nii\textra"], "line 2: found 3 cells, expected 2"),
        (["case\timage", "a\ta.nii", "b\t"], "line 3: image: found an empty cell"),
        (["case\timage", "a\t../a.nii"], "line 2: image: .*outside"),
        (["case\timage", "a:b\ta.nii"], "line 2: case 'a:b': expected an id"),
        (["case\timage", "a\tgone.nii"], "1 file is missing"),
        (["case\timage"], "found no case of layout table"),
        (["", ""], "empty table"),
        (["case\timage", "a" * 140_000 + "\ta.nii"], r"\.tsv: line 2: field larger than"),
    ],
)
def test_table_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_dataset(table(tmp_path, *rows))
