"""The archive extractor: ordinary archives come out whole, hostile ones leave nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.errors import DataError
from medseg.storage import archives
from medseg.storage.archives import extract
from tests.helpers.paths import ROOT

FILES = {"task/a.txt": b"alpha", "task/deep/b.bin": bytes(range(256)) * 40, "task/empty": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as target:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        target.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return path


def assert_refused(archive: Path, message: str, **limits: int) -> None:
    """`extract` fails with `message`, and neither the folder nor anything beside it is there after."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(DataError, match=message) as caught:
        extract(archive, archive.parent / "out", **limits)
    assert archive.name in str(caught.value)
    assert sorted(archive.parent.rglob("*")) == before


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": make_zip,
    "tar": lambda path, files: make_tar(path, files, "w"),
    "gz": make_tar,
    "bz2": lambda path, files: make_tar(path, files, "w:bz2"),
    "xz": lambda path, files: make_tar(path, files, "w:xz"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_ordinary_archives_are_extracted(tmp_path, kind):
    folder = extract(MAKERS[kind](tmp_path / "archive", FILES), tmp_path / "new" / "out")
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert found == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", r"found '\.\.'"),
        ("task/../../evil", r"found '\.\.'"),
        ("task/..", r"found '\.\.'"),
        ("/tmp/evil", "absolute path"),
        ("C:/evil", "absolute path"),
        ("c:evil", "absolute path"),
        ("task\\..\\evil", "backslash"),
        ("task/new\nline", "control or invisible characters"),
        ("task/right\u202eleft", "control or invisible"),
    ],
)
def test_dangerous_member_names_raise(tmp_path, kind, name, message):
    assert_refused(MAKERS[kind](tmp_path / "archive", {"task/ok": b"1", name: b"2"}), message)


OF_OTHER_SYSTEMS = [
    ("task/a:b", "found the character :"),
    ("task/b?.txt", r"found the character \?"),
    ("task/CON", "Windows reserves"),
    ("aux.txt/file", "Windows reserves"),
    ("task/lpt¹", "Windows reserves"),
    ("task./file", "dot or space at the end"),
    ("task/file ", "dot or space at the end"),
    ("TASK/ok", "differ only in case"),
    ("Task/other", "differ only in case"),
]


@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize(("name", "message"), OF_OTHER_SYSTEMS)
def test_names_that_windows_does_not_allow_raise_there(tmp_path, kind, name, message, monkeypatch):
    monkeypatch.setattr("medseg.storage.archives._ON_WINDOWS", True)
    monkeypatch.setattr("medseg.storage.archives.ignores_case", lambda folder: True)
    assert_refused(MAKERS[kind](tmp_path / "archive", {"task/ok": b"1", name: b"2"}), message)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not allow these names")
@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize("name", ["Doe J./CT 1 ", *(name for name, _ in OF_OTHER_SYSTEMS)])
def test_names_that_only_this_system_allows_are_extracted(tmp_path, kind, name, monkeypatch):
    monkeypatch.setattr("medseg.storage.archives.ignores_case", lambda folder: False)
    folder = extract(MAKERS[kind](tmp_path / "archive", {"task/ok": b"1", name: b"2"}), tmp_path / "out")
    assert (folder / name).read_bytes() == b"2"


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_names_that_differ_only_in_the_form_of_an_accent_raise_where_case_is_ignored(
    tmp_path, kind, monkeypatch
):
    monkeypatch.setattr("medseg.storage.archives.ignores_case", lambda folder: True)
    files = {"M\u00fcller/a": b"1", "Mu\u0308ller/b": b"2"}
    assert_refused(
        MAKERS[kind](tmp_path / "archive", files),
        r"how accents are stored.* Rename it, and pack the archive again",
    )


def test_names_that_are_not_utf8_raise(tmp_path):
    archive = make_tar(tmp_path / "a.tar", {"task/M\udcfcller": b"1"}, "w")
    assert_refused(archive, "found bytes that are not UTF-8, expected names")


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_unusual_names_that_every_system_allows_are_extracted(tmp_path, kind):
    files = {"task/.hidden": b"1", "task/context.txt": b"2", "task/com10": b"3", "task/\u60a3\u8005 1": b"4"}
    folder = extract(MAKERS[kind](tmp_path / "archive", files), tmp_path / "out")
    assert sum(path.is_file() for path in folder.rglob("*")) == len(files)


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_archives_beyond_the_limits_raise(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / "archive", FILES)
    assert_refused(archive, "more than 100 bytes", max_bytes=100)
    assert_refused(archive, "more than 2 members", max_members=2)


@pytest.mark.parametrize("name", ["task/a", "task/./a", "task//a"])
def test_duplicate_names_in_tar_raise(tmp_path, name):
    make_tar(tmp_path / "a.tar", {"task/a": b"1"}, "w")
    make_tar(tmp_path / "a.tar", {name: b""}, "a")
    assert_refused(tmp_path / "a.tar", "found the name twice")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_in_zip_raise(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        target.writestr("a", b"1")
        target.writestr("a", b"2")
    assert_refused(tmp_path / "a.zip", "found the name twice")


def test_file_and_folder_of_one_name_raise(tmp_path):
    assert_refused(make_tar(tmp_path / "a.tar", {"task": b"1", "task/a": b"2"}), "cannot be unpacked")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S"]
)
def test_special_tar_members_raise(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as target:
        member = tarfile.TarInfo("task/thing")
        member.type, member.linkname = kind, "/etc/hosts"
        target.addfile(member)
    assert_refused(tmp_path / "a.tar", "link, device or pipe")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666, 0o140777])
def test_special_zip_members_raise(tmp_path, mode):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        member = zipfile.ZipInfo("thing")
        member.create_system, member.external_attr = 3, mode << 16
        target.writestr(member, "/etc/hosts")
    assert_refused(tmp_path / "a.zip", "link or device")


def test_encrypted_zip_raises(tmp_path):
    content = bytearray(make_zip(tmp_path / "a.zip", {"a": b"secret"}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert_refused(tmp_path / "a.zip", "is encrypted")


def test_decompression_bombs_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_TOTAL_RATIO", 50)
    monkeypatch.setattr(archives, "_SMALL", 0)
    zeros = bytes(3_000_000)
    assert_refused(make_tar(tmp_path / "a.tar.gz", {"zeros": zeros}), "more than .* bytes in total")
    (tmp_path / "a.tar.gz").unlink()
    monkeypatch.setattr(archives, "DEFLATE_LIMIT", 50)
    noise = random.Random(0).randbytes(200_000)  # hides the bomb's share of the whole
    assert_refused(
        make_zip(tmp_path / "a.zip", {"noise": noise, "zeros": zeros}), "expands more than 50-fold"
    )


def test_zip_with_a_wrong_size_in_its_header_raises(tmp_path):
    content = bytearray(make_zip(tmp_path / "a.zip", {"a": bytes(100_000)}).read_bytes())
    central = content.index(b"PK\x01\x02")
    content[22:26] = content[central + 24 : central + 28] = struct.pack("<I", 10)
    (tmp_path / "a.zip").write_bytes(content)
    assert_refused(tmp_path / "a.zip", "damaged or not readable")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_archives_raise(tmp_path, kind, share):
    whole = MAKERS[kind](tmp_path / "whole", FILES).read_bytes()
    (tmp_path / "whole").unlink()
    (tmp_path / "archive").write_bytes(whole[: int(share * len(whole.rstrip(b"\0")))])
    assert_refused(tmp_path / "archive", "damaged or not readable")


def test_damaged_header_inside_a_tar_raises(tmp_path):
    content = bytearray(make_tar(tmp_path / "a.tar", {"one": b"1", "two": b"2"}, "w").read_bytes())
    content[content.index(b"two") + 148] ^= 1  # checksum field
    (tmp_path / "a.tar").write_bytes(content)
    assert_refused(tmp_path / "a.tar", "damaged or not readable")


def test_wrong_stream_checksum_raises(tmp_path):
    content = bytearray(gzip.compress(make_tar(tmp_path / "a.tar", FILES, "w").read_bytes()))
    content[-6] ^= 1  # crc32
    (tmp_path / "a.tar").write_bytes(content)
    assert_refused(tmp_path / "a.tar", "damaged or not readable")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(2048)])
def test_other_files_raise(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    assert_refused(tmp_path / "a.zip", r"damaged or not readable|found no file")


def test_existing_folder_is_not_changed(tmp_path):
    archive = make_zip(tmp_path / "a.zip", FILES)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        extract(archive, tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        extract(tmp_path / "absent.zip", tmp_path / "other")


def test_no_other_code_unpacks_archives():
    pattern = re.compile(r"extractall|unpack_archive|\.extract\(")
    sources = [file for folder in ("medseg", "data_scripts") for file in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 10
    assert [str(file) for file in sources if pattern.search(file.read_text(encoding="utf-8"))] == []
