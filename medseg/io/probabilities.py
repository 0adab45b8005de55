"""Class probabilities as a NIfTI file that is filled piece by piece, larger than memory if need be."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.atomic import replacing
from medseg.io.nifti import geometry_header
from medseg.volume import Volume

TOP = np.iinfo(np.uint16).max
"""Probabilities are whole numbers of 1/65535, which NIfTI readers scale back; half the size of float32."""
_PIECES = 64  # written before the pages are given back


class ProbabilityFile:
    """An open file of probabilities `(K, X, Y, Z)`; made by `writing_probabilities`."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self._path, self._offset, self._shape = path, offset, shape
        self._written = 0
        self._map: Any = None

    def array(self) -> NDArray[np.uint16]:
        """The encoded probabilities `(K, X, Y, Z)`; asked for before each piece is written."""
        self._written += 1
        if self._map is None or self._written % _PIECES == 0:  # mapped pages count as memory of the process
            self.close()
            self._map = np.memmap(
                self._path, dtype="<u2", mode="r+", offset=self._offset, shape=self._shape, order="F"
            )
        return np.moveaxis(self._map, -1, 0)

    @staticmethod
    def encoded(values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Probabilities as whole numbers."""
        return np.rint(values * TOP).astype(np.uint16)

    def close(self) -> None:
        """Let go of the pages."""
        if self._map is not None:
            self._map.flush()
            self._map = None


@contextlib.contextmanager
def writing_probabilities(path: str | Path, like: Volume, classes: int) -> Iterator[ProbabilityFile]:
    """A new 4-D NIfTI file on the grid of `like`, all background; it gets its name once it is whole.

    Args:
        path: ends with ``.nii``; compressed files cannot be filled in any order.
        like: grid and geometry fields.
        classes: number of classes; class 0 is background.

    Raises:
        DataError: another suffix, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nii":
        raise DataError(f"{path}: found suffix {path.suffix!r}, expected .nii for probabilities. Rename it.")
    shape = (*like.grid.shape, classes)
    header = geometry_header(like, shape, np.dtype("<u2"))
    header.set_slope_inter(1 / TOP, 0)
    header["vox_offset"] = offset = int(header["sizeof_hdr"]) + 4
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            header.write_to(file)
            file.write(b"\0" * (offset - file.tell()))  # the mark of no extensions, where it is missing
            plane = np.full(like.grid.shape[0] * like.grid.shape[1], TOP, "<u2").tobytes()
            for _ in range(like.grid.shape[2]):
                file.write(plane)
            _reserve(file, offset + int(np.prod(shape, dtype=np.int64)) * 2)
        opened = ProbabilityFile(temporary, offset, shape)
        try:
            yield opened
        finally:
            opened.close()


def _reserve(file: BinaryIO, size: int) -> None:
    """Give the file its size and the disk space for it; to write into a hole on a full disk would end the process."""
    file.flush()
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    zeros = bytes(1 << 20)
    for start in range(file.seek(0, os.SEEK_END), size, len(zeros)):
        file.write(zeros[: size - start])


def reading_probabilities(path: str | Path) -> Iterator[NDArray[np.uint16]]:
    """The slices `(X, Y, K)` of a file that `writing_probabilities` made, encoded, one at a time."""
    image = nib.load(path, mmap=False)
    proxy = nib.arrayproxy.ArrayProxy(
        str(path), (image.shape, image.get_data_dtype(), image.dataobj.offset), mmap=False
    )
    for index in range(image.shape[2]):
        # Read, not mapped: mapped pages count as memory of the process.
        yield np.asarray(proxy[:, :, index])
