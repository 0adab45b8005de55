"""Datasets as a table of cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError, collected_warnings
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
        (["case\timage", "a:b\ta.nii"], "line 2: case: found the id 'a:b', expected one"),
        (["case\timage", "Con\ta.nii"], "line 2: case: found the id 'Con', .* no name that Windows reserves"),
        (["case\timage", "a\tgone.nii"], "1 file is missing"),
        (["case\timage"], "found no case of layout table"),
        (["", ""], "empty table"),
        (["case\timage", "a" * 140_000 + "\ta.nii"], r"\.tsv: line 2: field larger than"),
    ],
)
def test_table_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_dataset(table(tmp_path, *rows))


def test_other_columns_are_ignored_with_one_warning(tmp_path):
    rows = ["case\timage\tage\tphase\tlabel", "a\ta.nii\t61\tvenous\tl.nii"]
    with collected_warnings() as notes:
        dataset = read_dataset(table(tmp_path, *rows))
        read_dataset(tmp_path)
    assert dataset.case("a").label == tmp_path / "l.nii"
    (note,) = notes
    assert "cases.tsv: columns: found 'age', 'phase', expected case and" in note
    with pytest.raises(DataError, match=r"unknown column 'Label'\. Did you mean 'label'"):
        read_dataset(table(tmp_path, "case\timage\tLabel", "a\ta.nii\tl.nii"))


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "N/A", "nan", "None"])
def test_cells_without_a_file(tmp_path, cell):
    rows = ["case\timage\tlabel\tsubject\tlabels", f"a\ta.nii\t{cell}\t{cell}\t{cell}"]
    (case,) = read_dataset(table(tmp_path, *rows)).cases
    assert (case.label, case.subject, case.annotated) == (None, "a", None)
    with pytest.raises(DataError, match="line 2: image: found an empty cell"):
        read_dataset(table(tmp_path, "case\timage", f"a\t{cell or ' '}"))


def test_tables_with_commas(tmp_path):
    table(tmp_path, "")
    file = tmp_path / "list.csv"
    file.write_text('case,image,label,comment\r\n"a, b",a.nii,NA,"one, two"\r\nc,b.nii,l.nii,\r\n')
    with collected_warnings() as notes:
        dataset = read_dataset(file)
    assert "found 'comment'" in notes[0]
    assert dataset.ids == ("a, b", "c")
    assert dataset.case("c").label == tmp_path / "l.nii"
    file.write_text("case,image\na,a.nii,b.nii\n")
    with pytest.raises(DataError, match=r"line 2: found 3 cells, expected 2\. Separate them by commas"):
        read_dataset(file)
    file.write_text("case;image\na;a.nii\n")
    with pytest.raises(DataError, match=r"found columns case;image, expected .*, separated by commas"):
        read_dataset(file)
    file.write_text('case,image\n"a,a.nii\n')
    with pytest.raises(DataError, match=r"list\.csv: line 2: .*Fix the row"):
        read_dataset(file)


def test_a_doubled_label_value_is_named_with_its_lines(tmp_path):
    table(tmp_path, "case\timage\tlabel", "a\ta.nii\tl.nii")
    (tmp_path / "labels.tsv").write_text("value\tname\n1\tliver\n\n1\tspleen\n")
    with pytest.raises(DataError, match=r"labels\.tsv: line 4: value: found 1 again, which line 2 has"):
        read_dataset(tmp_path)
