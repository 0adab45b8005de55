"""Stamps change when files change."""

from __future__ import annotations

import os

from medseg.storage.stamps import file_stamps, short_hash


def test_folder_stamp_lists_its_files_relative_to_the_root(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for name in ("b.dcm", "a.dcm"):
        (series / name).write_bytes(b"xy")
        os.utime(series / name, ns=(5, 7))
    assert file_stamps([series], tmp_path) == [("series/a.dcm", 2, 7), ("series/b.dcm", 2, 7)]
    assert file_stamps([series])[0][0] == str(series / "a.dcm")
    assert file_stamps([series], tmp_path / "elsewhere")[0][0] == str(series / "a.dcm")


def test_size_and_time_change_a_stamp(tmp_path):
    file = tmp_path / "a.nii"
    file.write_bytes(b"xy")
    before = short_hash(file_stamps([file]))
    os.utime(file, ns=(1, 1))
    assert short_hash(file_stamps([file])) != before
    assert len(before) == 16
