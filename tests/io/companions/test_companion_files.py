from __future__ import annotations

from pathlib import Path

import pytest

from medseg.io.companions.companion_files import companion_files


@pytest.mark.parametrize(
    ("name", "content", "others"),
    [
        ("a.nii.gz", b"", []),
        ("a.hdr", b"", ["a.img"]),
        ("a.img", b"", ["a.hdr"]),
        ("A.HDR", b"", ["A.IMG"]),
        ("a.mhd", b"ObjectType = Image\nElementDataFile = a.raw\n", ["a.raw"]),
        ("a.mhd", b"NDims = 3\r\nElementDataFile=a b.zraw\r\n", ["a b.zraw"]),
        ("a.mha", b"ElementDataFile = LOCAL\n", []),
        ("a.nhdr", b"NRRD0004\nencoding: gzip\ndata file: ./a.raw.gz\n", ["a.raw.gz"]),
        ("a.tif", b"", ["a.json"]),
        ("a_0000.tiff", b"", ["a.json"]),
        ("a.png", b"", []),
    ],
)
def test_files_that_are_read_together(tmp_path: Path, name: str, content: bytes, others: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert companion_files(tmp_path / name) == []
    for other in (*others, "unrelated.json"):
        (tmp_path / other).write_bytes(b"")
    assert companion_files(tmp_path / name) == [tmp_path / other for other in others]


def test_a_folder_has_no_other_files(tmp_path: Path) -> None:
    (tmp_path / "series.mhd").mkdir()
    assert companion_files(tmp_path / "series.mhd") == []
