from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from medseg.storage import file_state
from medseg.storage.file_state import FileState


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "series").mkdir()
    for name in ("a.nii", "series/1", "series/2"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return [tmp_path / "a.nii", tmp_path / "series"]


def test_unchanged_files_are_not_read(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    state = FileState.of(files)
    monkeypatch.setattr(file_state, "_content", lambda _: pytest.fail("read"))
    assert state.still_holds(files)


def test_copied_and_touched_files_have_the_same_content(files: list[Path], tmp_path: Path) -> None:
    state = FileState.of(files)
    files[0].touch()
    assert state.still_holds(files)
    shutil.copytree(files[1], tmp_path / "copy")
    assert state.still_holds([files[0], tmp_path / "copy"])


@pytest.mark.parametrize("change", ["truncated", "other bytes, same size and time", "one more", "missing"])
def test_a_change_is_noticed(files: list[Path], change: str) -> None:
    state = FileState.of(files)
    before = files[0].stat()
    if change == "truncated":
        files[0].write_bytes(files[0].read_bytes()[:100])
    elif change == "one more":
        (files[1] / "3").write_bytes(b"")
    elif change == "missing":
        files[0].unlink()
    else:
        files[0].write_bytes(b"x" * before.st_size)
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not state.still_holds(files)


def test_bytes_that_move_from_one_file_to_the_next_are_a_change(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"12")
    b.write_bytes(b"3")
    state = FileState.of([a, b])
    a.write_bytes(b"1")
    b.write_bytes(b"23")
    assert not state.still_holds([a, b])
