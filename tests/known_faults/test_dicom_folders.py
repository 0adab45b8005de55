"""Faults in reading DICOM folders that are known and not yet repaired; see `test_image_files`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import medseg
from medseg.data.datasets.image_inputs import read_images
from medseg.errors import DataError
from tests.helpers.marks import known_fault


@pytest.fixture
def series(shared_data: Path, tmp_path: Path) -> Path:
    """Twelve slices of a real CT series in a folder of their own."""
    folder = tmp_path / "series"
    folder.mkdir()
    for path in sorted((shared_data / "dicom" / "head_ct").iterdir())[:12]:
        shutil.copy(path, folder)
    return folder


@known_fault("DICOM files without a preamble end in a traceback")
def test_slices_without_a_preamble_are_refused(series: Path) -> None:
    for path in series.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    with pytest.raises(DataError, match=series.name):
        medseg.read(series)


@known_fault("an empty file at an end of the stack is left out without a word")
def test_an_empty_slice_at_an_end_is_refused(series: Path) -> None:
    sorted(series.iterdir())[-1].write_bytes(b"")
    with pytest.raises(DataError):
        medseg.read(series)


@known_fault("an image beside the slices is taken in place of the series")
def test_a_preview_image_does_not_hide_the_series(series: Path) -> None:
    Image.new("L", (64, 64)).save(series / "thumb.png")
    (case,) = read_images(series)
    assert case.images == (series,)


@known_fault("pixel data that are too short are filled from other memory")
def test_short_pixel_data_are_refused(series: Path) -> None:
    path = sorted(series.iterdir())[5]
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8
    path.write_bytes(content[:start] + (1000).to_bytes(4, "little") + content[start + 4 : start + 4 + 1000])
    with pytest.raises(DataError):
        medseg.read(series)
