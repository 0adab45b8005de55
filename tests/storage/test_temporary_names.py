from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from medseg.storage import temporary_names
from medseg.storage.atomic import make_folder, write_text
from medseg.storage.temporary_names import sweep, temporary_file, temporary_folder


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> int:
    """The ID of a process that has ended; names are created as if by it."""
    process = subprocess.Popen(["true"])
    process.wait()
    monkeypatch.setattr("os.getpid", lambda: process.pid)
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_names_are_short_hidden_and_keep_what_writers_need(tmp_path: Path) -> None:
    name = temporary_file(tmp_path / ("n" * 240 + ".nii.gz")).name
    assert name.startswith(".tmp-")
    assert name.endswith(".nii.gz")
    assert len(name) < 60
    assert len(temporary_file(tmp_path / ("a." + "b" * 200 + ".nii")).name) < 60
    assert temporary_folder(tmp_path / "model").name.endswith(".new.model")


def test_files_and_folders_of_an_ended_process_are_removed(tmp_path: Path, dead: int) -> None:
    temporary_file(tmp_path / "ct.nii.gz").write_text("half")
    temporary_folder(tmp_path / "model").mkdir()
    (temporary_folder(tmp_path / "best") / "inner").mkdir(parents=True)
    (tmp_path / "ct.nii.gz").write_text("whole")
    sweep(tmp_path)
    assert names(tmp_path) == ["ct.nii.gz"]


def test_files_of_running_processes_and_of_other_hosts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary_file(tmp_path / "a").write_text("of this process")
    monkeypatch.setattr(temporary_names, "_host", lambda: "abcdef")
    monkeypatch.setattr("os.getpid", lambda: 2**22 + 1)
    temporary_file(tmp_path / "a").write_text("of another host")
    monkeypatch.undo()
    (tmp_path / ".tmp-notes").write_text("of a user")
    sweep(tmp_path)
    assert len(names(tmp_path)) == 3


def test_a_replaced_folder_without_a_successor_is_put_back(tmp_path: Path, dead: int) -> None:
    old = temporary_folder(tmp_path / "model", "old")
    old.mkdir()
    (old / "weights").write_text("kept")
    (temporary_folder(tmp_path / "model") / "half").mkdir(parents=True)
    sweep(tmp_path)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "kept"


def test_a_replaced_folder_with_a_successor_is_removed(tmp_path: Path, dead: int) -> None:
    temporary_folder(tmp_path / "model", "old").mkdir()
    (tmp_path / "model").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("start", [make_folder, lambda folder: write_text(folder / "a.txt", "x")])
def test_the_next_start_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: object, dead: int
) -> None:
    left = temporary_file(tmp_path / "ct_probabilities.nii")
    left.write_text("half")
    monkeypatch.undo()
    start(tmp_path)  # type: ignore[operator]
    assert not left.exists()
