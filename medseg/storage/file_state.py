"""The state of files at one moment, by which a later change of their content is recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from medseg.storage.stamps import short_hash

_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileState:
    """The content of one or several files, and the facts by which it is usually recognised without reading it.

    Attributes:
        stamp: Hash of sizes, times and numbers on the disk. Every change of a file changes the system's own time of
            change, which no program can set back. Copying or moving a file changes the stamp, too.
        content: Hash of the bytes.
    """

    stamp: str
    content: str

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Self:
        """Read the state of files.

        Args:
            paths: Files, and folders such as a DICOM series, for which all files in them count, also in folders within them.

        Returns:
            The state of all of them together.

        Raises:
            OSError: A file is missing or cannot be read.
        """
        files = _files(paths)
        return cls(_stamp(files), _content(files))

    def has_stamp_of(self, paths: Iterable[Path]) -> bool:
        """Return whether the files have this stamp, so that their content is known without reading them.

        Args:
            paths: The files, in the same order.

        Returns:
            True only if no file was changed, moved or replaced.

        Raises:
            OSError: A file is missing.
        """
        return _stamp(_files(paths)) == self.stamp

    def still_holds(self, paths: Iterable[Path]) -> bool:
        """Return whether the files have the same content as then; they are read only if their stamp differs.

        Args:
            paths: The files, in the same order.

        Returns:
            False also if a file is missing or cannot be read.
        """
        try:
            files = _files(paths)
            return _stamp(files) == self.stamp or _content(files) == self.content
        except OSError:
            return False


def stamp_of(paths: Iterable[Path]) -> str:
    """Return the stamp of files without reading them, see `FileState`.

    Args:
        paths: Files, and folders such as a DICOM series, for which all files in them count, also in folders within them.

    Returns:
        Hash of sizes, times and numbers on the disk.

    Raises:
        OSError: A file is missing.
    """
    return _stamp(_files(paths))


def _files(paths: Iterable[Path]) -> list[Path]:
    return [file for path in paths for file in (_files_in(path) if path.is_dir() else [path])]


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a folder and of all folders within it, as a disk from a hospital has them."""
    return sorted(file for file in folder.rglob("*") if not file.is_dir())


def _stamp(files: list[Path]) -> str:
    statuses = [file.stat() for file in files]
    return short_hash([[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev] for s in statuses])


def _content(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.stat().st_size.to_bytes(8, "little"))
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
