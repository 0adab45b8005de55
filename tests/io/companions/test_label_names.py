from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import DataError, DataWarning
from medseg.io.companions.label_names import label_names_of
from tests.io.nifti.test_nifti_label_names import TABLE, saved


def test_the_table_of_the_file_comes_before_the_one_of_the_folder_and_the_header(tmp_path: Path) -> None:
    path = saved(tmp_path / "organs.nii.gz", TABLE)
    found = label_names_of(path)
    assert found is not None
    assert {label.value: label.name for label in found.foreground} == {1: "spleen", 7: "left kidney & fat"}
    assert found[1].colour == (255, 128, 0)
    (tmp_path / "labels.tsv").write_text("value\tname\n1\tof the folder\n")
    assert label_names_of(path).names == ("background", "of the folder")
    (tmp_path / "organs.tsv").write_text("value\tname\n1\tof the file\n")
    assert label_names_of(path).names == ("background", "of the file")


def test_nothing_names_the_labels(tmp_path: Path) -> None:
    assert label_names_of(saved(tmp_path / "a.nii")) is None
    assert label_names_of(tmp_path / "a.nrrd") is None


def test_names_that_occur_twice_are_made_different_and_negative_values_reported(tmp_path: Path) -> None:
    twice = TABLE.replace("left  kidney &amp; fat", "spleen").replace('Key="0"', 'Key="-2"')
    path = saved(tmp_path / "a.nii", twice)
    with pytest.warns(DataWarning, match=r"names of the values \[-2\]"):
        assert label_names_of(path).names == ("background", "spleen", "spleen (7)")


def test_an_invalid_table_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii")
    (tmp_path / "labels.tsv").write_text("number\ttitle\n1\tspleen\n")
    with pytest.raises(DataError, match=r"labels.tsv"):
        label_names_of(path)
