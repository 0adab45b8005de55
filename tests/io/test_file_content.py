"""Files that cannot be opened, and content that is not what its name promises."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from medseg.errors import DataError
from medseg.io.file_content import permission_denied, recognised_content, require_readable


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"name" + bytes(253) + b"ustar", "a tar archive"),
        (bytes(300), "only zeros"),
        (b"<?xml version='1.0'?>", "XML text"),
        (b"\xef\xbb\xbf <HTML>", "an HTML page"),
        (b'{"error": 404}', "JSON text"),
        (b"a,b\n1,2\n", "text"),
        (b"\x01\x02\x03", "unknown content"),
    ],
)
def test_content_is_named(head: bytes, name: str) -> None:
    assert recognised_content(head)[0] == name


def test_an_error_of_the_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.nii"
    file.write_bytes(b"voxels")

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(DataError, match=r"a.nii: cannot be read \(Input/output error\). Check the disk"):
        require_readable(file, "an image")


def test_an_owner_without_a_name_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(_: Path) -> NoReturn:
        raise KeyError

    monkeypatch.setattr(Path, "owner", nameless)
    assert f"belongs to user {tmp_path.stat().st_uid} with mode" in str(permission_denied(tmp_path))


def denied(*_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_folders_and_files_without_permission_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where tests run as a user whom no mode stops."""
    from medseg.data.datasets.names import visible_files
    from medseg.io.dicom import series_files
    from medseg.io.dicom.dicom_header import has_mark

    file = tmp_path / "a"
    file.write_bytes(bytes(200))
    monkeypatch.setattr(Path, "iterdir", denied)
    monkeypatch.setattr(Path, "open", denied)
    for read, path in ((visible_files, tmp_path), (series_files._visible, tmp_path), (has_mark, file)):
        with pytest.raises(DataError, match=f"{path}: found no permission to read it"):
            read(path)
