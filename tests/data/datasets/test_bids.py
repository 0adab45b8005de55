"""Datasets laid out as BIDS derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError
from tests.helpers.file_trees import write_tree


def bids(root: Path) -> Path:
    write_tree(
        root,
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/anat/sub-02_T1w.json",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "derivatives/manual/sub-02/anat/sub-02_desc-expert_dseg.nii.gz",
        "derivatives/manual/sub-02/anat/sub-02_probseg.nii.gz",
    )
    for session in ("ses-a", "ses-b"):
        stem = f"sub-01/{session}/anat/sub-01_{session}"
        write_tree(root, f"{stem}_T1w.nii.gz", f"{stem}_FLAIR.nii.gz", f"{stem}_acq-fast_T2w.nii.gz")
        write_tree(root, f"derivatives/manual/{stem}_dseg.nii.gz")
    (root / "derivatives/manual/dseg.tsv").write_text(
        "index\tname\tcolor\n0\tbackground\t#000000\n2\tlesion\t#ff0000\n"
    )
    return root


def test_bids(tmp_path):
    dataset = read_dataset(bids(tmp_path))
    assert dataset.ids == ("sub-01_ses-a", "sub-01_ses-b", "sub-02")
    assert [case.subject for case in dataset.cases] == ["sub-01", "sub-01", "sub-02"]
    assert dataset.channel_names == ("FLAIR", "T1w")  # T2w is not there for all
    assert [path.name for path in dataset.case("sub-02").images] == [
        "sub-02_FLAIR.nii.gz",
        "sub-02_T1w.nii.gz",
    ]
    assert dataset.case("sub-02").label is not None
    assert dataset.case("sub-02").label.name == "sub-02_desc-expert_dseg.nii.gz"
    assert dataset.labels is not None
    assert (dataset.labels.names, dataset.labels.values) == (("background", "lesion"), (0, 2))


def test_bids_keeps_cases_without_label(tmp_path):
    bids(tmp_path)
    write_tree(tmp_path, "sub-03/anat/sub-03_T1w.nii.gz", "sub-03/anat/sub-03_FLAIR.nii.gz")
    assert len(read_dataset(tmp_path).labelled_cases) == 3
    assert len(read_dataset(tmp_path).cases) == 4


def test_bids_without_table_has_no_labels(tmp_path):
    bids(tmp_path)
    (tmp_path / "derivatives/manual/dseg.tsv").unlink()
    assert read_dataset(tmp_path).labels is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["derivatives/other/sub-02/anat/sub-02_dseg.nii.gz"], "several label maps"),
        (["derivatives/manual/sub-09/anat/sub-09_dseg.nii.gz"], "found no image of sub-09"),
        (["sub-02/anat/sub-02_T1w.nii"], "are the same channel"),
        (["sub-04/anat/sub-04_PDw.nii.gz"], "no channel is common to all 4 cases"),
    ],
)
def test_bids_that_is_not_clear(tmp_path, names, message):
    write_tree(bids(tmp_path), *names)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_bids_tables_must_agree(tmp_path):
    bids(tmp_path)
    (tmp_path / "derivatives/manual/sub-02/anat/sub-02_dseg.tsv").write_text("index\tname\n2\ttumour\n")
    with pytest.raises(DataError, match="name labels differently"):
        read_dataset(tmp_path)
