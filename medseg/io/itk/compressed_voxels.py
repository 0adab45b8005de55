"""Compressed voxels of MetaImage and NRRD files, checked before ITK reads them.

ITK does not verify them: of damaged zlib data in a MetaImage it returns what it has decompressed so far, and of gzip data in
an NRRD file it does not read the checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from isal import isal_zlib

from medseg.errors import DataError
from medseg.io.file_content import GZIP
from medseg.io.gzip_stream import GzipStream

_BLOCK = 1 << 20
_DAMAGED: Any = isal_zlib.error
_ZLIB, _GZIP = 15, 31  # window bits: the header and the checksum of this format are expected


def check_compressed(
    voxels: Path,
    header: Path,
    start: int,
    *,
    stored: int | None = None,
    expected: int | None = None,
    several: bool = False,
) -> None:
    """Raise unless compressed voxels have the checksum that they carry, and the length that the header states.

    Args:
        voxels: The file that holds them, as gzip or zlib data.
        header: The file with the header.
        start: Where they begin in the file.
        stored: Compressed bytes; None for all up to the end of the file.
        expected: Bytes after decompression; None accepts any number.
        several: Whether several members of gzip data may follow each other; otherwise the data are one, gzip or zlib.

    Raises:
        DataError: They are damaged or cut off, or there are more or fewer than expected.
    """
    found = 0
    try:
        with voxels.open("rb") as file:
            file.seek(start)
            for part in _decompressed(_Part(file, stored), several):
                found += len(part)
                if expected is not None and found > expected:
                    break
    except EOFError:
        raise _early(voxels, found, expected) from None
    except (OSError, _DAMAGED) as error:
        raise DataError(
            f"{voxels}: the compressed voxels are damaged ({error}), expected those of {header.name} unchanged. Copy the file again."
        ) from None
    if expected is not None and found > expected:
        raise DataError(
            f"{voxels}: found more than {expected} bytes after decompression, expected as many according to {header.name}. Copy the "
            "file again."
        )
    if expected is not None and found < expected:
        raise _early(voxels, found, expected)


def _early(voxels: Path, found: int, expected: int | None) -> DataError:
    wanted = "more" if expected is None or found >= expected else f"{expected} according to the header"
    return DataError(
        f"{voxels}: the voxels end early: found {found} bytes after decompression, expected {wanted}. Copy the file again."
    )


class _Part:
    """A part of an open file, from its position on.

    Args:
        file: The file.
        size: Bytes of the part; None for all up to the end of the file.
    """

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        self._file, self._left = file, size

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, fewer only at the end."""
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        return self._file.read(size)

    def is_gzip(self) -> bool:
        """Return whether the part begins as gzip data."""
        at = self._file.tell()
        head = self._file.read(len(GZIP))
        self._file.seek(at)
        return head == GZIP


def _decompressed(part: _Part, several: bool) -> Iterator[bytes]:
    """Yield the decompressed bytes; raise at the first damage, or at the end if the checksum differs."""
    if several:
        stream = GzipStream(part)
        while block := stream.read(_BLOCK):
            yield block
        return
    decompressor, pending = isal_zlib.decompressobj(_GZIP if part.is_gzip() else _ZLIB), b""
    while not decompressor.eof:
        pending = pending or part.read(_BLOCK)
        if not pending:
            raise EOFError
        yield decompressor.decompress(pending, _BLOCK)
        pending = decompressor.unconsumed_tail
