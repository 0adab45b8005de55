from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medseg.storage import file_state
from medseg.storage.content_index import ContentIndex
from medseg.storage.file_state import FileState


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.nii"
    path.write_bytes(b"voxels")
    return path


def test_the_index_is_kept_from_one_program_to_the_next(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ContentIndex(tmp_path / "index.json")
    state = first.state([file])
    assert state == FileState.of([file])
    first.save()
    monkeypatch.setattr(file_state, "_content", lambda _: pytest.fail("read"))
    assert ContentIndex(tmp_path / "index.json").state([file]) == state


def test_a_change_of_the_same_size_and_time_is_read(tmp_path: Path, file: Path) -> None:
    index = ContentIndex(tmp_path / "index.json")
    before, stat = index.state([file]), file.stat()
    file.write_bytes(b"VOXELS")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert index.state([file]).content != before.content


def test_entries_of_other_processes_are_kept(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "b.nii"
    other.write_bytes(b"more")
    one, two = ContentIndex(tmp_path / "index.json"), ContentIndex(tmp_path / "index.json")
    one.state([file])
    two.state([other])
    one.save()
    two.save()
    assert set(json.loads((tmp_path / "index.json").read_text())["files"]) == {str(file), str(other)}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": 3}}', "\0"]
)
def test_a_damaged_index_is_replaced(tmp_path: Path, file: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    index = ContentIndex(tmp_path / "index.json")
    assert index.state([file]) == FileState.of([file])
    index.save()
    assert set(json.loads((tmp_path / "index.json").read_text())["files"]) == {str(file)}


def test_a_missing_file_is_an_error(tmp_path: Path, file: Path) -> None:
    file.unlink()
    with pytest.raises(FileNotFoundError):
        ContentIndex(tmp_path / "index.json").state([file])
