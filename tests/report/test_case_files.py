"""The images of a report, matched with their cases by file name."""

from __future__ import annotations

import pytest

from medseg.errors import DataError
from medseg.report.case_files import images_of_folder


def test_channels_are_the_files_with_consecutive_numbers(tmp_path):
    for name in ("a_0001.nii.gz", "a_0000.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    images = images_of_folder(tmp_path)
    assert [(case.id, [file.name for file in case.images]) for case in images.values()] == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"]),
        ("b", ["b.nii.gz"]),
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.nii.gz", "a.nrrd"), ("a_0000.nii.gz", "a_0000.nrrd"), ("a.nii.gz", "a_0000.nii.gz")],
)
def test_two_files_of_one_channel_are_refused(tmp_path, first, second):
    for name in (first, second):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="for case 'a', expected one file, or one per channel") as refused:
        images_of_folder(tmp_path)
    assert first in str(refused.value)
    assert second in str(refused.value)
