from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from medseg.errors import DataError, ResourceError
from medseg.storage import atomic
from medseg.storage.atomic import (
    check_folder,
    copy_folder,
    replacing,
    replacing_folder,
    sync_folder,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_written(path: Path, failure: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise failure


def test_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "é 1\n")
    assert path.read_bytes() == "é 1\n".encode()
    write_bytes(path, b"2")
    assert path.read_bytes() == b"2"
    assert names(path.parent) == ["a.txt"]


def test_temporary_name_is_hidden_in_the_same_folder_and_keeps_suffixes(tmp_path: Path) -> None:
    with replacing(tmp_path / "ct.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        assert not temporary.exists()
        temporary.write_bytes(b"1")
    assert names(tmp_path) == ["ct.nii.gz"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, MemoryError])
def test_failure_keeps_only_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(failure):
        half_written(path, failure())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_raises_with_the_file_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(
        ResourceError, match=r"a\.txt: cannot be written \(No space left on device\)\. Free space"
    ):
        half_written(path, OSError(28, os.strerror(28)))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_failed_sync_or_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for target, name in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            with pytest.raises(DataError, match="Input/output error"):
                write_text(path, "new")
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]


def test_impossible_targets_raise(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: cannot be written"):
        write_text(tmp_path / "folder", "x")
    (tmp_path / "file").write_text("old")
    with pytest.raises(DataError, match=r"file/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(DataError, match=r"File name too long\)\. Shorten the name"):
        write_text(tmp_path / ("n" * 256), "x" * 10)
    assert names(tmp_path) == ["file", "folder"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def test_a_writer_that_creates_a_private_file_does_not_decide_the_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a.bin") as temporary:
            temporary.write_text("x")
            temporary.chmod(0o600)
        with replacing_folder(tmp_path / "model") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "b.bin").write_text("x")
            (folder / "inner" / "b.bin").chmod(0o600)
    finally:
        os.umask(before)
    for path in (tmp_path / "a.bin", tmp_path / "model" / "inner" / "b.bin"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("write", [replacing, replacing_folder])
@pytest.mark.parametrize(
    "text", ["I/O error: No space left on device (os error 28)", "serialisation failed (os error 122)"]
)
def test_a_full_disk_is_recognised_in_the_error_of_a_foreign_writer(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]], text: str
) -> None:
    class ForeignError(Exception):
        pass

    with (
        pytest.raises(ResourceError, match=r"target: cannot be written .*Free space"),
        write(tmp_path / "target"),
    ):
        raise ForeignError(text)
    assert names(tmp_path) == []


def test_a_writer_without_a_reason_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        with replacing(tmp_path / "ct.nrrd"):
            raise RuntimeError("failed to write")

    with pytest.raises(RuntimeError, match="failed to write"):
        write()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ResourceError, match=r"ct\.nrrd: cannot be written \(No space left on device\)"):
        write()


def test_a_short_write_of_numpy_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy raises an OSError without a number."""

    def save() -> None:
        with replacing_folder(tmp_path / "case"):
            raise OSError("2692 requested and 992 written")

    with pytest.raises(DataError, match=r"case: cannot be written \(2692 requested and 992 written\)"):
        save()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(ResourceError, match=r"case: cannot be written \(No space left on device\)"):
            save()
    assert names(tmp_path) == []


def test_the_reason_of_a_writer_without_one_is_found_by_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota is full although the disk is not."""

    def refuse(_: int) -> None:
        raise OSError(122, os.strerror(122))

    def write() -> None:
        with replacing(tmp_path / "image.npy") as temporary:
            temporary.write_bytes(b"half")
            monkeypatch.setattr(os, "fsync", refuse)
            raise OSError("2692 requested and 992 written")

    with pytest.raises(ResourceError, match=r"image\.npy: cannot be written \(Disk quota exceeded\)\. Free"):
        write()
    assert names(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()


def test_syncing_an_absent_folder_does_nothing(tmp_path: Path) -> None:
    sync_folder(tmp_path / "absent")


def fill(path: Path, text: str, failure: BaseException | None = None, **options: bool) -> None:
    with replacing_folder(path, **options) as temporary:
        (temporary / "a.txt").write_text(text)
        if failure is not None:
            raise failure


def test_folder_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model"
    fill(path, "1")
    (path / "of_the_old_one.txt").write_text("")
    fill(path, "2")
    assert names(path) == ["a.txt"]
    assert (path / "a.txt").read_text() == "2"
    assert names(path.parent) == ["model"]


@pytest.mark.parametrize("failure", [ValueError(), KeyboardInterrupt(), OSError(28, "full")])
def test_failure_keeps_only_the_old_folder(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "model"
    fill(path, "old")
    with pytest.raises((type(failure), ResourceError)):
        fill(path, "new", failure)
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_failed_move_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "model", Path.rename
    fill(path, "old")

    def refuse_the_new(self: Path, target: Path) -> Path:
        if ".new." in self.name:
            raise OSError(13, "denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(DataError, match=r"model: cannot be written \(denied\)"):
        fill(path, "new")
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_folder_created_meanwhile_is_kept_on_request(tmp_path: Path) -> None:
    path = tmp_path / "case"
    fill(path, "first")
    fill(path, "second", keep_existing=True)
    assert (path / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["case"]


def test_folder_created_during_the_rename_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "case", Path.rename

    def rename_as_the_second(self: Path, target: Path) -> Path:
        assert self != path  # another process may be reading it
        path.mkdir()
        (path / "a.txt").write_text("first")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_as_the_second)
    fill(path, "second", keep_existing=True)
    assert (path / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["case"]


def test_file_instead_of_the_folder_to_keep_raises(tmp_path: Path) -> None:
    (tmp_path / "case").write_text("")
    with pytest.raises(DataError, match="case: cannot be written"):
        fill(tmp_path / "case", "second", keep_existing=True)
    assert names(tmp_path) == ["case"]


def test_a_checked_folder_is_not_left_behind(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    check_folder(tmp_path / "kept" / "new")
    check_folder(tmp_path / "kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        check_folder(tmp_path / "file" / "new")


@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_an_error_that_is_being_handled_is_no_reason_of_a_later_one(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    def fail() -> None:
        with write(tmp_path / "target"):
            raise ValueError("no label")

    try:
        (tmp_path / "missing").read_text()
    except FileNotFoundError:
        with pytest.raises(ValueError, match="no label"):
            fail()
    assert names(tmp_path) == []


def test_the_names_of_all_files_in_a_folder_are_durable_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    own = atomic.sync_folder

    def note(folder: Path) -> None:
        synced.append("target" if folder == tmp_path else folder.name)
        own(folder)

    monkeypatch.setattr(atomic, "sync_folder", note)
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "inner" / "innermost").mkdir(parents=True)
        (folder / "inner" / "a.bin").write_text("x")
    assert {"inner", "innermost", folder.name} < set(synced)
    assert synced[-1] == "target"


@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_a_file_that_the_writer_cannot_read_is_named(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (tmp_path / "source").mkdir()
    absent, folder, target = (
        tmp_path / "source" / "absent.txt",
        tmp_path / "source",
        tmp_path / "out" / "target",
    )
    with pytest.raises(DataError, match=rf"^{absent}: no such file"), write(target):
        absent.read_text()
    with (
        pytest.raises(DataError, match=rf"^{folder}: cannot be read \(Is a directory\), expected"),
        write(target),
    ):
        folder.read_bytes()
    assert names(target.parent) == []


@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_an_error_that_explains_itself_is_not_replaced_by_its_cause(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    def fail() -> None:
        with write(tmp_path / "target"):
            try:
                (tmp_path / "font.ttf").read_bytes()
            except OSError:
                raise ValueError("no font") from None

    with pytest.raises(ValueError, match="no font"):
        fail()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_copy_to_a_full_disk_is_an_error_of_writing_although_it_names_the_source(
    tmp_path: Path, number: int
) -> None:
    with pytest.raises(ResourceError, match=r"target: cannot be written"), replacing(tmp_path / "target"):
        raise OSError(number, os.strerror(number), str(tmp_path / "source"))


def test_a_temporary_file_of_the_writer_belongs_to_the_target(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"target\.nii: cannot be written"),
        replacing(tmp_path / "target.nii") as temporary,
    ):
        raise PermissionError(errno.EACCES, "denied", f"{temporary}.part")


def test_a_copied_folder_has_the_files_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "source" / "inner").mkdir(parents=True)
    (tmp_path / "source" / "inner" / "a.txt").write_text("a")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "b.txt").write_text("b")
    copy_folder(tmp_path / "source", tmp_path / "target")
    assert names(tmp_path / "target") == ["b.txt", "inner"]
    assert (tmp_path / "target" / "inner" / "a.txt").samefile(tmp_path / "source" / "inner" / "a.txt")


def test_a_file_of_a_copied_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "source" / "inner").mkdir(parents=True)
    (tmp_path / "source" / "inner" / "link").symlink_to(tmp_path / "absent")
    with (
        pytest.raises(DataError, match=r"source/inner/link: no such file"),
        replacing_folder(tmp_path / "model") as folder,
    ):
        copy_folder(tmp_path / "source", folder / "first_stage")
    assert names(tmp_path) == ["source"]
