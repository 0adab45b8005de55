from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from medseg.errors import DataError
from medseg.serve.worker.job_input import job_input
from tests.helpers.zip_archives import zip_of


def prepared(folder: Path, members: dict[str, bytes], **options: int) -> Path:
    (folder / "image.zip").write_bytes(zip_of(members))
    return job_input(folder, "image.zip", **{"max_bytes": 10**9, **options})


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_single_files_are_used_in_place(tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").write_bytes(b"x")
    assert job_input(tmp_path, "image.nii.gz", 10) == tmp_path / "image.nii.gz"


def test_a_single_dicom_file_becomes_a_series(tmp_path: Path) -> None:
    (tmp_path / "image.dcm").write_bytes(b"x")
    assert names(job_input(tmp_path, "image.dcm", 10)) == ["00000.dcm"]


def test_members_of_all_folders_get_neutral_names(tmp_path: Path) -> None:
    found = prepared(
        tmp_path,
        {
            "Doe^Jane/CT 1/IM.1": b"1",
            "Doe^Jane/CT 2/IM.1": b"2",
            "Doe^Jane/DICOMDIR": b"d",
            "__MACOSX/Doe^Jane/._IM.1": b"m",
            ".DS_Store": b"s",
        },
    )
    assert names(found) == ["00000", "00001"]
    assert "Doe" not in str(found)
    assert not (tmp_path / "unpacked").exists()


def test_channels_of_a_case_and_pairs_of_files_stay_together(tmp_path: Path) -> None:
    found = prepared(
        tmp_path, {"Doe_0000.nii.gz": b"1", "Doe_0001.nii.gz": b"2", "Roe.hdr": b"h", "Roe.img": b"i"}
    )
    assert names(found) == ["00000_0000.nii.gz", "00000_0001.nii.gz", "00001.hdr", "00001.img"]


def test_a_second_start_begins_from_the_archive(tmp_path: Path) -> None:
    first = prepared(tmp_path, {"a/1": b"1", "a/2": b"2"})
    (first / "more").write_bytes(b"x")
    assert names(prepared(tmp_path, {"a/1": b"1", "a/2": b"2"})) == ["00000", "00001"]


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_of({"Doe/../../x": b"x"}), "found '..'"),
        (zip_of({"/Doe": b"x"}), "absolute path"),
        (zip_of({"C:\\Doe": b"x"}), "absolute path or a backslash"),
        (zip_of({link("Doe"): b"/etc/passwd"}), "found a link"),
        (zip_of({"Doe": bytes(2 * 2**20)}), "expands more than|bytes in total"),
        (
            zip_of({f"Doe{number}": b"" for number in range(31)}, zipfile.ZIP_STORED),
            "more than 30 members",
        ),
        (zip_of({"Doe": bytes(1000)}, zipfile.ZIP_STORED)[:600], "damaged or not readable"),
        (
            zip_of({"Doe": bytes(1000)}, zipfile.ZIP_STORED).replace(bytes(900), b"1" * 900),
            "damaged or not readable",
        ),
        (zip_of({}), "found no file"),
        (b"no archive", "damaged or not readable"),
        (zip_of({"Doe.mhd": b"ElementDataFile = Doe.raw"}), "header without its voxels"),
    ],
)
def test_unsafe_and_damaged_archives_are_refused_without_names(
    tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.serve.worker.job_input.MAX_MEMBERS", 30)
    monkeypatch.setattr("medseg.storage.archives._SMALL", 2**20)
    (tmp_path / "image.zip").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        job_input(tmp_path, "image.zip", 10**9)
    assert "Doe" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert not (tmp_path / "unpacked").exists()


def test_archives_expand_to_the_limit_at_most(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 500 bytes in total"):
        prepared(tmp_path, {"a": bytes(400), "b": bytes(400)}, max_bytes=500)
