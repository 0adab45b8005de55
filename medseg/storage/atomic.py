"""Files and folders that are either whole or absent: temporary name, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from medseg.errors import DataError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`.

    The temporary name keeps the suffixes, because writers choose the format by them. On an error it is
    removed and `path` is left as it was.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{unique_suffix()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on success its files are synced and it becomes `path`.

    Args:
        path: what is there stays as it was until the new folder is whole; on an error it stays.
        keep_existing: leave a folder that another process has put there meanwhile, for contents that are the
            same whoever writes them.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary, previous = (
        path.with_name(f".{unique_suffix()}.{mark}.{path.name}") for mark in ("new", "old")
    )
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if keep_existing:
            _put(temporary, path)
        else:
            _swap(temporary, path, previous)
        sync_folder(path.parent)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unique_suffix() -> str:
    """Part of a temporary name that no other process takes, on this machine or another one."""
    return f"{os.getpid()}-{secrets.token_hex(2)}"


def write_error(path: Path, error: OSError) -> DataError:
    """The error to raise where `path` could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "Free space, or choose another folder." if full else "Choose another folder."
    return DataError(f"{path}: cannot be written ({error.strerror or error}). {advice}")


def make_folder(path: str | Path) -> None:
    """Make a folder and check that it can be written to, before work that would be lost otherwise.

    Raises:
        DataError: it cannot.
    """
    path = Path(path)
    probe = path / f".{unique_suffix()}.probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written to ({error.strerror or error}). Choose another folder."
        ) from None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path` in one step."""
    write_bytes(path, text.encode())


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of files that are never changed in place, by links where the disk allows, which take no room.

    Args:
        source: stays as it is. target: may be there.

    Raises:
        OSError: it cannot be read or written.
    """

    def link_or_copy(old: str, new: str) -> None:
        try:
            if not os.access(old, os.W_OK):  # which could not be synced
                raise PermissionError
            os.link(old, new)
        except OSError:  # also on another disk, or a file system without links
            shutil.copyfile(old, new)

    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)


def _put(new: Path, path: Path) -> None:
    """Put `new` at `path`, unless a folder is there; asked for by the renaming itself, of which one process is first."""
    try:
        new.rename(path)
    except OSError:
        if not path.is_dir():
            raise


def _swap(new: Path, path: Path, previous: Path) -> None:
    """Put `new` at `path`, what is there at `previous`; or leave `path` as it is."""
    if path.exists():
        path.rename(previous)
    try:
        new.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise


def _sync(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
