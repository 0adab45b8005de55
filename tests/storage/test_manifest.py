"""Folders that are whole or do not count."""

from __future__ import annotations

import json

import pytest

from medseg.errors import ModelError
from medseg.storage import manifest
from medseg.storage.manifest import check_manifest, is_complete, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    write_manifest(tmp_path)
    return tmp_path


def test_complete_folder_is_accepted(folder):
    check_manifest(folder)
    assert is_complete(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files["a.txt"] == {
        "sha256": "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8",
        "size": 5,
    }
    assert set(files) == {"a.txt", "b.bin"}


def test_hidden_files_are_ignored(folder):
    (folder / ".DS_Store").write_text("x")
    assert is_complete(folder)


def test_writing_it_again_gives_the_same_bytes(folder):
    before = (folder / "manifest.json").read_bytes()
    write_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == before


def spoil(folder, how):
    if how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "missing":
        (folder / "a.txt").unlink()
    elif how == "extra":
        (folder / "c.txt").write_text("")
    elif how == "flipped":
        (folder / "b.bin").write_bytes(bytes([1, *range(1, 256)]))
    elif how == "truncated":
        (folder / "b.bin").write_bytes(bytes(range(255)))
    elif how == "newer":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    else:
        (folder / "manifest.json").write_text(how)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no manifest", "no such file, expected a complete folder"),
        ("missing", r"missing files: a.txt; unexpected files: none"),
        ("extra", r"missing files: none; unexpected files: c.txt"),
        ("flipped", r"b\.bin: found SHA-256 \w{64}, expected \w{64}\. The file changed"),
        ("truncated", r"b\.bin: found .*255.*, expected .*256"),
        (
            "newer",
            r"format: found 2, expected 1, because a newer medseg wrote this file \(manifest\)\. Update medseg",
        ),
        ("", "damaged"),
        ('{"format": 1', "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"format": 1, "files": 3}', "damaged"),
        ('{"format": 1, "files": [["a", 1, 2]]}', "damaged"),
        ('{"format": 1, "files": {"a.txt": 3, "b.bin": "x"}}', "damaged"),
    ],
)
def test_changed_folders_raise_with_the_file_name(folder, how, told):
    spoil(folder, how)
    assert not is_complete(folder)
    with pytest.raises(ModelError, match=told):
        check_manifest(folder)


def test_an_unreadable_file_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "_entry", refuse)
    assert not is_complete(folder)
    with pytest.raises(ModelError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        check_manifest(folder)
