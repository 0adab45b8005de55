"""What a file really is: checks before a reader opens it, and the name of the format that its first bytes show."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from medseg.errors import DataError, no_such_path
from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason

GZIP = b"\x1f\x8b"
_HEAD_BYTES = 2048
_GIT_LFS = b"version https://git-lfs"
_SIGNATURES = (
    (GZIP, "gzip data", "Add .gz to its name if the content is right, or unpack it"),
    (b"PK\x03\x04", "a zip archive", "Unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it"),
    (b"\xfd7zXZ\x00", "xz data", "Unpack it"),
    (b"BZh", "bzip2 data", "Unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "Unpack it"),
    (b"Rar!", "a RAR archive", "Unpack it"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", "Rename it to .png"),
    (b"\xff\xd8\xff", "a JPEG image", "Rename it to .jpg"),
    (b"II*\x00", "a TIFF image", "Rename it to .tif"),
    (b"MM\x00*", "a TIFF image", "Rename it to .tif"),
    (b"NRRD0", "an NRRD image", "Rename it to .nrrd"),
    (b"ObjectType", "a MetaImage header", "Rename it to .mha or .mhd"),
    (b"NDims", "a MetaImage header", "Rename it to .mha or .mhd"),
    (b"\x89HDF", "an HDF5 file", "Convert it to NIfTI"),
    (b"CDF\x01", "a MINC (netCDF) file", "Convert it to NIfTI"),
    (b"\x93NUMPY", "a NumPy array", "Save it as NIfTI with its affine"),
    (b"%PDF", "a PDF document", "Give the image"),
    (
        b"\x00\x00\x00\x01\x00\x00",
        "a FreeSurfer MGH image",
        "Rename it to .mgh, or to .mgz if it is compressed",
    ),
)


def require_readable(path: Path, expected: str = "an image file") -> None:
    """Raise unless a path is a file with content that this process may read.

    Args:
        path: The file.
        expected: What it should be, for the message.

    Raises:
        DataError: There is no file, a link leads nowhere, it is a folder, a pipe or a device, it is empty, or its
            permissions forbid reading. The message says which, with the target of the link, or owner and mode.
    """
    try:
        found = path.stat()
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), None)
        if kind is not None:
            raise DataError(f"{path}: found {kind}, expected {expected}. Give the file itself.")
        if found.st_size == 0:
            raise DataError(f"{path}: found 0 bytes, expected {expected}. Copy or download the file again.")
        with path.open("rb"):
            pass
    except PermissionError:
        raise permission_denied(path) from None
    except OSError as error:
        if path.is_symlink():
            raise DataError(
                f"{path}: found a link to {path.readlink()}, which cannot be followed ({error.strerror}), expected {expected}. "
                "Restore the target, or make a link to its new place."
            ) from None
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise DataError(no_such_path(path, "file")) from None
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the disk and the path.") from None


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def lack_of_memory_explained(path: str | Path) -> Iterator[None]:
    """Name the file that memory does not suffice for, whatever library reports it; reading it again would not help.

    Args:
        path: The file or folder that is read.

    Raises:
        DataError: An error in the context means a lack of memory.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(
            f"{path}: not enough memory for its voxels ({out_of_memory_reason(error)}). Free memory, or crop the image."
        ) from None


def permission_denied(path: Path) -> DataError:
    """Return the error for a path that this process may not read, with owner and mode of the part that forbids it.

    Args:
        path: The file or folder.

    Returns:
        The error, to be raised.
    """
    closed = (folder for folder in reversed(path.absolute().parents) if not os.access(folder, os.X_OK))
    part = next(closed, path)
    try:
        entry = part.stat()
        found = f"{'it' if part == path else part} belongs to {_owner(part)} with mode {stat.S_IMODE(entry.st_mode):04o}"
    except OSError:
        found = "its owner and mode are hidden"
    return DataError(
        f"{path}: found no permission to read it ({found}), expected read access. Change the mode with chmod, or copy it to a folder "
        "of your own."
    )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError, NotImplementedError):
        return f"user {path.stat().st_uid}"


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, enough to recognise its format."""
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def recognised_file(path: Path) -> tuple[str, str]:
    """Name the format of a file by its first bytes, or by its suffix if it is packed.

    Args:
        path: The file.

    Returns:
        What it is, and what to do, as from `recognised_content`.
    """
    content, remedy = recognised_content(head_of(path))
    if content == "gzip data" and path.suffix.lower() == ".mgz":
        return "an image of FreeSurfer", "Convert the file again"
    return content, remedy


def recognised_content(head: bytes) -> tuple[str, str]:
    """Name the format that the first bytes of a file show, for a message.

    Args:
        head: First bytes of the file, at most 2048.

    Returns:
        What it is, and what to do, without a final full stop; ``"unknown content"`` if no signature fits.

    >>> recognised_content(b"<!DOCTYPE html><html>")
    ('an HTML page', 'The download failed: download the file again')
    """
    for signature, name, remedy in _SIGNATURES:
        if head.startswith(signature):
            return name, remedy
    if head[128:132] == b"DICM":
        return "a DICOM file", "Give the folder of its series"
    if head[257:262] == b"ustar":
        return "a tar archive", "Unpack it"
    if not head.strip(b"\0"):
        return "only zeros", "Copy the file again"
    return _recognised_text(head) or ("unknown content", "Copy the file again or convert it")


def _recognised_text(head: bytes) -> tuple[str, str] | None:
    """Return what a text is, and what to do; None for anything but text."""
    if head.startswith(_GIT_LFS):
        return "a Git LFS pointer instead of the file", "Run git lfs pull"
    try:
        text = head[:-3].decode("utf-8", "ignore") if len(head) == _HEAD_BYTES else head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f\x1b" for letter in text):
        return None
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page", "The download failed: download the file again"
    if start.startswith("<"):
        return "XML text", "Give the image"
    if start.startswith(("{", "[")):
        return "JSON text", "Give the image, or download it again if this is an error message"
    return "text", "Give the image, or copy the file again"
