"""Probabilities of classes or regions as a NIfTI file, filled piece by piece, larger than memory if need be."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.nifti import geometry_header
from medseg.storage.atomic import replacing
from medseg.volumes.volume import Volume

TOP = np.iinfo(np.uint16).max
"""Probabilities are whole numbers of 1/65535, which NIfTI readers scale back; half the size of float32."""
_PAGES = 64 << 20  # bytes that may be mapped before they are given back
_PAGE = 1 << 12


class ProbabilityFile:
    """An open file of probabilities `(K, X, Y, Z)`; made by `writing_probabilities`."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self._path, self._offset, self._shape = path, offset, shape
        self._touched = 0
        self._map: Any = None

    def resident_bytes(self, axis: int) -> int:
        """Bytes of mapped pages at most, which count as memory of the process, while slices across `axis` are written."""
        return min(_bytes_of(self._shape), max(_PAGES, 2 * self._slice_bytes(axis)))

    def _slice_bytes(self, axis: int) -> int:
        """Bytes of the pages that hold one slice across an axis; the file's first axis varies fastest."""
        x, y, z, k = self._shape
        runs, length = ((y * z * k, 2), (z * k, 2 * x), (k, 2 * x * y))[axis]
        return min(_bytes_of(self._shape), runs * (length + _PAGE))

    def array(self, axis: int = 2) -> NDArray[np.uint16]:
        """The encoded probabilities `(K, X, Y, Z)`; asked for before each slice across `axis` is written."""
        self._touched += self._slice_bytes(axis)
        if self._map is None or self._touched > self.resident_bytes(axis):
            self._touched = self._slice_bytes(axis)
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
def writing_probabilities(
    path: str | Path, like: Volume, outside: Mapping[str, float]
) -> Iterator[ProbabilityFile]:
    """A new 4-D NIfTI file on the grid of `like`; it gets its name once it is whole.

    A header extension of the kind "comment" holds the names as a JSON object ``{"volumes": [...]}``.

    Args:
        path: ends with ``.nii``; compressed files cannot be filled in any order.
        like: grid and geometry fields.
        outside: name of each class or region, and its probability wherever none is written.

    Raises:
        DataError: another suffix, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nii":
        raise DataError(f"{path}: found suffix {path.suffix!r}, expected .nii for probabilities. Rename it.")
    shape = (*like.grid.shape, len(outside))
    header = geometry_header(like, shape, np.dtype("<u2"))
    header.set_slope_inter(1 / TOP, 0)
    names = json.dumps({"volumes": list(outside)}, ensure_ascii=False)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", names.encode()))
    header["vox_offset"] = offset = int(header["sizeof_hdr"]) + 4 + header.extensions.get_sizeondisk()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            header.write_to(file)
            for index, value in enumerate(outside.values()):
                if value:
                    file.seek(offset + index * _bytes_of(like.grid.shape))
                    _fill(file, like.grid.shape, value)
            _reserve(file, offset + _bytes_of(shape))
        opened = ProbabilityFile(temporary, offset, shape)
        try:
            yield opened
        finally:
            opened.close()


def _fill(file: BinaryIO, shape: tuple[int, ...], value: float) -> None:
    """Write a volume of one probability, a slice at a time."""
    plane = np.full(shape[:2], np.rint(value * TOP), "<u2").tobytes()
    for _ in range(shape[2]):
        file.write(plane)


def _bytes_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * 2


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
