"""Atomic files and folders: written under a temporary name, synced and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from medseg.errors import DataError, DiskFullError, MedsegError, ResourceError, no_such_path
from medseg.storage.temporary_names import sweep_once, temporary_file, temporary_folder

_ALMOST_NOTHING = 1 << 16
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is synced and renamed to `path`.

    The temporary name keeps the suffixes, because writers choose the format by them. After an error the temporary
    file is removed and `path` is unchanged. The file gets the permissions that the umask leaves to new files, whatever
    the writer does.

    Args:
        path: The file to create or replace.

    Yields:
        The temporary path to write to.

    Raises:
        DataError: The folder cannot be written, or another file that the writer needs cannot be read.
        ResourceError: The disk is full, or the file exceeds the limit of file sizes.
    """
    path = Path(path)
    temporary = temporary_file(path)
    try:
        with _write_errors(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep_once(path.parent)
            mode = _mode_of_new_file(temporary)
            yield temporary
            _set_mode(temporary, mode)
            _sync(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
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
        DataError: The folder cannot be written, or another file that the writer needs cannot be read.
        ResourceError: The disk is full, or the file exceeds the limit of file sizes.
    """
    path = Path(path)
    temporary, previous = temporary_folder(path), temporary_folder(path, "old")
    try:
        with _write_errors(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep_once(path.parent)
            temporary.mkdir()
            mode = _mode_of_new_file(temporary / ".probe")
            yield temporary
            for item in temporary.rglob("*"):
                if item.is_dir():
                    sync_folder(item)
                elif item.is_file():
                    _set_mode(item, mode)
                    _sync(item)
            sync_folder(temporary)  # a synced file whose name is not durable is lost in a power failure
            if keep_existing:
                _put(temporary, path)
            else:
                _swap(temporary, path, previous)
            sync_folder(path.parent)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _write_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Convert what a writer raises into the error of `write_error`, and say if it is another file that cannot be read.

    Other errors pass unchanged. A system error without the name of a file counts as one of writing.
    """
    handled = sys.exc_info()[1]  # Python makes it the context of every later error, which it did not cause
    try:
        yield
    except MedsegError:
        raise
    except Exception as error:
        reason = _system_error(error, path.parent, handled)
        if reason is None:
            raise
        other = _other_file(reason, path, temporary)
        if other is None:
            raise write_error(path, reason) from error
        if reason is not error:  # what the writer says about that file is more precise
            raise
        raise _read_error(other, reason) from error


def is_full(error: OSError) -> bool:
    """Return whether an error means that the disk or the user's quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_error(path: Path, error: OSError) -> DataError | ResourceError:
    """Return the error to raise if a file could not be written.

    Args:
        path: The file.
        error: The error of the system.

    Returns:
        An error that names the file, the reason and the remedy; the caller raises it.
    """
    what = f"{path}: cannot be written ({error.strerror or error})."
    if is_full(error):
        return DiskFullError(f"{what} Free space, or choose another folder.")
    if error.errno == errno.EFBIG:
        return ResourceError(f"{what} Raise the limit of file sizes (ulimit -f), or choose another folder.")
    if error.errno == errno.ENAMETOOLONG:
        return DataError(f"{what} Shorten the name of the file or of its folder.")
    return DataError(f"{what} Choose another folder.")


def _other_file(error: OSError, path: Path, temporary: Path) -> Path | None:
    """Return the file that an error is about if it is not the one that is written; None also if it is not known.

    An error with two files is one of copying or renaming, which may name the source although the target is to blame.
    """
    if error.errno in _OF_WRITING or error.filename2 is not None:
        return None
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return None
    found, target = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    is_target = str(found).startswith(str(temporary.absolute())) or found in (target, *target.parents)
    return None if is_target else found


def _read_error(file: Path, error: OSError) -> DataError:
    if error.errno == errno.ENOENT:
        return DataError(no_such_path(file))
    return DataError(
        f"{file}: cannot be read ({error.strerror or error}), expected a file that this process may read. Check it and its permissions."
    )


def make_folder(path: str | Path) -> None:
    """Create a folder and check that it can be written to, before work that would be lost otherwise.

    Args:
        path: The folder; it may exist.

    Raises:
        DataError: The folder cannot be created or written to.
    """
    path = Path(path)
    probe = temporary_file(path / "probe")
    try:
        path.mkdir(parents=True, exist_ok=True)
        sweep_once(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise write_error(path, error) from None


def check_folder(path: str | Path) -> None:
    """Check that a folder can be created and written to, without leaving one that did not exist.

    Args:
        path: The folder; it may exist.

    Raises:
        DataError: The folder cannot be created or written to.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    for folder in missing:
        with contextlib.suppress(OSError):  # another process uses it already
            folder.rmdir()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file in one step: readers see the old file or the new one.

    Args:
        path: The file to create or replace.
        content: Its bytes.

    Raises:
        DataError: The folder cannot be written.
        ResourceError: The disk is full, or the file exceeds the limit of file sizes.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file in one step, as `write_bytes`.

    Args:
        path: The file to create or replace.
        text: Its text.

    Raises:
        DataError: The folder cannot be written.
        ResourceError: The disk is full, or the file exceeds the limit of file sizes.
    """
    write_bytes(path, text.encode())


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder whose files are never changed in place, by hard links if the disk supports them.

    Args:
        source: The folder to copy.
        target: The copy; an existing folder is added to.

    Raises:
        OSError: A file cannot be read or written. (`shutil.copytree` would only raise texts of such errors.)
    """
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir():
            copy_folder(item, target / item.name)
        else:
            _link_or_copy(item, target / item.name)
    shutil.copystat(source, target)


def _link_or_copy(old: Path, new: Path) -> None:
    try:
        if not os.access(old, os.W_OK):  # such a file could not be synced
            raise PermissionError
        os.link(old, new)
    except OSError:  # also on another disk, or a file system without links
        shutil.copyfile(old, new)


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


def _mode_of_new_file(probe: Path) -> int:
    """Return the permissions that this folder and the umask give to a new file, by creating one and removing it."""
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _set_mode(file: Path, mode: int) -> None:
    """Give a file the permissions of a new file: some writers create theirs for the owner alone."""
    if file.stat().st_mode & 0o777 != mode:
        with contextlib.suppress(OSError):
            file.chmod(mode)


def _system_error(error: Exception, folder: Path, handled: BaseException | None) -> OSError | None:
    """Return the error of the system that made a writer fail.

    Writers in other languages raise classes of their own: torch keeps the OSError as context, safetensors writes its
    number into the text, and numpy and ITK give no reason, but the disk is still full while the temporary file exists.

    Args:
        error: What the writer raised.
        folder: The folder that was written to.
        handled: An earlier error that was being handled before the writing began; None if there was none.

    Returns:
        The error, or None if the writer failed for another reason.
    """
    cause: BaseException | None = error
    without_reason: Exception | None = error if isinstance(error, RuntimeError) else None
    while cause is not None and cause is not handled:
        if isinstance(cause, OSError):
            if cause.errno is not None:
                return cause
            without_reason = cause
        cause = cause.__cause__ or cause.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    found = None if without_reason is None else _error_of_writing(folder)
    return without_reason if found is None and isinstance(without_reason, OSError) else found


def _error_of_writing(folder: Path) -> OSError | None:
    """Return the error that a write to a folder meets at this moment, or None if there is none."""
    if not folder.is_dir():
        return None
    if shutil.disk_usage(folder).free < _ALMOST_NOTHING:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    probe = temporary_file(folder / "probe")
    try:
        with probe.open("wb") as file:
            file.write(bytes(_ALMOST_NOTHING))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


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
