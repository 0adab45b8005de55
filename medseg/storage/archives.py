"""Safe unpacking of archives; medseg unpacks archives nowhere else.

Archives can name files outside the target folder, contain links and devices, or expand without end. Everything
except plain files and folders at relative paths is refused, sizes are counted while unpacking instead of read from
headers, and the folder appears only when it is complete.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Self

from medseg.errors import DataError, no_such_path
from medseg.storage.atomic import is_full, sync_folder, write_error
from medseg.storage.portable_names import folded, ignores_case, name_fault
from medseg.storage.temporary_names import sweep_once, temporary_folder

DEFLATE_LIMIT = 1100
"""Packed data cannot expand to more times their size than this; the exact limit is about 1032."""
MAX_BYTES = 100 * 2**30
MAX_MEMBERS = 100_000
MAX_TOTAL_RATIO = 100  # of the whole archive; weights hardly shrink, and text shrinks tenfold
_SMALL = 64 * 2**20  # what any archive may expand to
_CHUNK = 1 << 20
_TRAILING_CHUNKS = 64
_RENAME = "Rename it, and pack the archive again."
_ON_WINDOWS = os.name == "nt"
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, gzip.BadGzipFile),
)


class ArchiveError(DataError):
    """An archive is damaged, or holds something that is not unpacked.

    Args:
        message: The whole message, with the names of the archive and the member.
        reason: What is wrong, without any name; names of members often identify a patient.

    Attributes:
        reason: As given.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def extract(
    archive: str | Path, folder: str | Path, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> Path:
    """Unpack a zip or tar archive (plain, gzip, bzip2 or xz) into a new folder.

    Args:
        archive: The archive; its format is recognised by content, not by name.
        folder: The new folder, which must not exist. It has a temporary name until it is complete.
        max_bytes: Largest number of bytes of all files together.
        max_members: Largest number of files and folders.

    Returns:
        `folder`.

    Raises:
        DataError: The archive is missing, damaged or encrypted; a name is absolute, has a drive letter, a
            backslash or ``..``, is not allowed on this system, or occurs twice, in a folder that ignores case also in another
            case or with accents stored otherwise; a member is a link, device or pipe; there are too many members or bytes, or
            the archive expands more than 100-fold. No files remain.
        ResourceError: The disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(no_such_path(archive))
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: exists already, expected a new folder. Choose another, or remove it.")
    temporary = temporary_folder(folder)
    try:
        sweep_once(folder.parent)
        temporary.mkdir(parents=True)
        budget = min(max_bytes, max(_SMALL, MAX_TOTAL_RATIO * archive.stat().st_size))
        _unpack(archive, _Target(archive, temporary, budget, max_members))
        temporary.rename(folder)
        sync_folder(folder.parent)
    except _DAMAGED as error:
        raise ArchiveError(
            f"{archive}: damaged or not readable ({error}). Download the archive again.",
            "damaged or not readable",
        ) from None
    except OSError as error:
        if is_full(error):
            raise write_error(folder, error) from error
        raise DataError(
            f"{archive}: cannot be unpacked to {folder} ({error.strerror or error}). Check the archive, free "
            "space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclass
class _Target:
    """The folder that is filled, with its limits and what is used of them."""

    archive: Path
    folder: Path
    max_bytes: int
    max_members: int
    used: int = 0
    names: set[str] = field(default_factory=set)
    spellings: dict[str, str] = field(default_factory=dict)  # of files and folders, by their folded paths

    @cached_property
    def ignores_case(self) -> bool:
        """Whether names that differ only in case are one file in this folder."""
        return ignores_case(self.folder)

    def refuse(
        self, name: str, what: str, fix: str = "Do not unpack archives of unknown origin."
    ) -> ArchiveError:
        return ArchiveError(f"{self.archive}: member {name!r}: {what}. {fix}", what)

    def admit(self, name: str) -> Path:
        """Return the path of a member after a check of its name and of the number of members."""
        if "\\" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise self.refuse(name, "found an absolute path or a backslash, expected a relative path")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.refuse(name, "found '..', expected a path inside the archive's folder")
        fault = next(filter(None, (name_fault(part, on_windows=_ON_WINDOWS) for part in parts)), None)
        if fault is not None:
            raise self.refuse(name, f"found {fault}, expected names that this system allows", _RENAME)
        if self.ignores_case:
            self._require_one_spelling(name, parts)
        key = "/".join(parts)
        if key in self.names:
            raise self.refuse(name, "found the name twice, expected each once")
        self.names.add(key)
        if len(self.names) > self.max_members:
            raise self.refuse(name, f"found more than {self.max_members} members")
        return self.folder.joinpath(*parts)

    def _require_one_spelling(self, name: str, parts: list[str]) -> None:
        """Raise if a file or folder of a member has the name of another one, except for case and accents."""
        for path in accumulate(parts, "{}/{}".format):
            other = self.spellings.setdefault(folded(path), path)
            if other != path:
                what = "found two names that differ only in case or in how accents are stored, which are one file here"
                raise self.refuse(name, what, _RENAME)

    def add_folder(self, name: str) -> None:
        self.admit(name).mkdir(parents=True, exist_ok=True)

    def fill(self, path: Path, name: str, content: IO[bytes], packed: int | None) -> None:
        """Copy `content` to an admitted path and count its bytes; `packed` is its size in the archive, if known."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with path.open("xb") as file:
            while chunk := content.read(_CHUNK):
                size += len(chunk)
                self.used += len(chunk)
                if self.used > self.max_bytes:
                    raise self.refuse(name, f"found more than {self.max_bytes} bytes in total")
                if packed is not None and size > DEFLATE_LIMIT * max(packed, 1):
                    raise self.refuse(name, f"expands more than {DEFLATE_LIMIT}-fold")
                file.write(chunk)


def _unpack(archive: Path, target: _Target) -> None:
    if zipfile.is_zipfile(archive):
        _unpack_zip(archive, target)
    else:
        _unpack_tar(archive, target)
    if not target.names:
        found = "found no file in it, expected some"
        raise ArchiveError(f"{archive}: {found}. Download the archive again.", found)


def _unpack_zip(archive: Path, target: _Target) -> None:
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            name = member.orig_filename  # before zipfile cuts it at a null character or replaces separators
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise target.refuse(name, "found a link or device, expected a file or folder")
            if member.flag_bits & 1:
                raise target.refuse(name, "is encrypted")
            if name.endswith("/") or kind == stat.S_IFDIR:
                target.add_folder(name)
            else:
                with source.open(member) as content:
                    target.fill(target.admit(name), name, content, member.compress_size)


def _unpack_tar(archive: Path, target: _Target) -> None:
    with (
        closing(_unpacked(archive)) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictInfo) as source,
    ):
        while (member := source.next()) is not None:
            if member.isdir():
                target.add_folder(member.name)
            elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                path = target.admit(member.name)
                if hasattr(tarfile, "data_filter"):  # Python 3.11.4; a second opinion
                    tarfile.data_filter(member, str(target.folder))
                content = source.extractfile(member)
                assert content is not None  # true of every regular file
                target.fill(path, member.name, content, None)
            else:
                raise target.refuse(member.name, "found a link, device or pipe, expected a file or folder")
        for _ in range(_TRAILING_CHUNKS):  # a packed stream's checksum is compared at its end
            if not stream.read(_CHUNK):
                break


class _StrictInfo(tarfile.TarInfo):
    """A tar header that refuses damage; tarfile treats a damaged header after the first as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the proper end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _unpacked(archive: Path) -> IO[bytes] | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    """Open the tar inside a file, whose compression is recognised by its first bytes."""
    with archive.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(archive)
    if magic.startswith(b"BZh"):
        return bz2.open(archive)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.open(archive)
    return archive.open("rb")
