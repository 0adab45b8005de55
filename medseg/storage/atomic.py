"""Atomic files and folders: written under a temporary name, synced and renamed."""

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
    """Yield a temporary path in the folder of `path`; on success it is synced and renamed to `path`.

    The temporary name keeps the suffixes, because writers choose the format by them. After an error the temporary
    file is removed and `path` is unchanged.

    Args:
        path: The file to create or replace.

    Yields:
        The temporary path to write to.

    Raises:
        DataError: The folder cannot be written, or the disk is full.
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
    """Yield a new temporary folder next to `path`; on success its files are synced and it replaces `path`.

    Args:
        path: The folder to create or replace. An existing one is unchanged until the new one is complete, and after an
            error.
        keep_existing: Keep a folder that another process created in the meantime, for content that does not depend
            on who writes it.

    Yields:
        The temporary folder to fill.

    Raises:
        DataError: The folder cannot be written, or the disk is full.
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
    """Return a part of a temporary name that no other process uses, on this machine or another one."""
    return f"{os.getpid()}-{secrets.token_hex(2)}"


def write_error(path: Path, error: OSError) -> DataError:
    """Return the error to raise if a file could not be written.

    Args:
        path: The file.
        error: The error of the system.

    Returns:
        An error that names the file, the reason and the remedy; the caller raises it.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "Free space, or choose another folder." if full else "Choose another folder."
    return DataError(f"{path}: cannot be written ({error.strerror or error}). {advice}")


def make_folder(path: str | Path) -> None:
    """Create a folder and check that it can be written to, before work that would be lost otherwise.

    Args:
        path: The folder; it may exist.

    Raises:
        DataError: The folder cannot be created or written to.
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
    """Write a file in one step: readers see the old file or the new one.

    Args:
        path: The file to create or replace.
        content: Its bytes.

    Raises:
        DataError: The folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file in one step, as `write_bytes`.

    Args:
        path: The file to create or replace.
        text: Its text.

    Raises:
        DataError: The folder cannot be written, or the disk is full.
    """
    write_bytes(path, text.encode())


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder whose files are never changed in place, by hard links if the disk supports them.

    Args:
        source: The folder to copy.
        target: The copy; an existing folder is added to.

    Raises:
        OSError: A file cannot be read or written.
    """

    def link_or_copy(old: str, new: str) -> None:
        try:
            if not os.access(old, os.W_OK):  # such a file could not be synced
                raise PermissionError
            os.link(old, new)
        except OSError:  # also on another disk, or a file system without links
            shutil.copyfile(old, new)

    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)


def _put(new: Path, path: Path) -> None:
    """Rename `new` to `path` unless a folder exists there; the renaming itself decides which process is first."""
    try:
        new.rename(path)
    except OSError:
        if not path.is_dir():
            raise


def _swap(new: Path, path: Path, previous: Path) -> None:
    """Rename `path` to `previous` and `new` to `path`; after an error, `path` is unchanged."""
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
    """Make renames in a folder durable, if the system supports it.

    Args:
        folder: The folder.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
