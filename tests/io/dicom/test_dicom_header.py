"""The headers of pydicom's own test files, against pydicom."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_files

from medseg.errors import DataError
from medseg.io.dicom.dicom_header import has_mark, read_header

WANTED = {
    "SeriesInstanceUID": 0x0020000E,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "Modality": 0x00080060,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
}
DAMAGED = ("rtplan_truncated.dcm", "MR_truncated.dcm", "UN_sequence.dcm")


@pytest.mark.slow
def test_headers_say_what_pydicom_reads() -> None:
    compared = 0
    for path in map(Path, get_testdata_files()):
        if not has_mark(path):
            continue
        if path.name in DAMAGED:
            with pytest.raises(DataError, match=path.name):
                read_header(path)
            continue
        header = read_header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pydicom.dcmread(path, force=True)
        for name, tag in WANTED.items():
            value = expected.get(name)
            assert header.text(tag) == ("" if value is None else str(value)), (path.name, name)
        assert (header.pixel_bytes is not None) == ("PixelData" in expected), path.name
        compared += 1
    assert compared > 40
