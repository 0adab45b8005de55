"""NIfTI files of class or region probabilities, written piece by piece, so that they may exceed memory."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.nifti.nifti_files import geometry_header
from medseg.storage.atomic import replacing
from medseg.volumes.volume import Volume

BYTES_PER_PROBABILITY = 2
TOP = np.iinfo(np.uint16).max
"""Probabilities are stored as multiples of 1/65535, which NIfTI readers scale back; half the size of float32."""
_PAGES = 64 << 20  # bytes of mapped pages before they are released
_PAGE = 1 << 12


class ProbabilityFile:
    """An open file of probabilities `(K, X, Y, Z)`, created by `writing_probabilities`.

    Args:
        path: The file.
        offset: Byte of the first voxel.
        shape: `(X, Y, Z, K)`.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self._path, self._offset, self._shape = path, offset, shape
        self._touched = 0
        self._map: Any = None

    def resident_bytes(self, axis: int) -> int:
        """Return the largest number of bytes of mapped pages, which count as memory of the process.

        Args:
            axis: Spatial axis across which slices are written.

        Returns:
            Bytes, at most those of the whole file.
        """
        return min(_stored_bytes(self._shape), max(_PAGES, 2 * self._slice_bytes(axis)))

    def _slice_bytes(self, axis: int) -> int:
        """Return the bytes of the pages that hold one slice across an axis; in the file, x varies fastest."""
        x, y, z, k = self._shape
        runs, length = ((y * z * k, 2), (z * k, 2 * x), (k, 2 * x * y))[axis]
        return min(_stored_bytes(self._shape), runs * (length + _PAGE))

    def array(self, axis: int = 2) -> NDArray[np.uint16]:
        """Return the encoded probabilities for writing; call it before each slice is written.

        Args:
            axis: Spatial axis across which slices are written.

        Returns:
            Writable array `(K, X, Y, Z)` uint16, mapped from the file; multiples of 1/65535.
        """
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
        """Encode probabilities as multiples of 1/65535.

        Args:
            values: Probabilities in [0, 1], of any shape.

        Returns:
            Array of the same shape, rounded to the nearest multiple.
        """
        return np.rint(values * TOP).astype(np.uint16)

    def close(self) -> None:
        """Release the mapped pages."""
        if self._map is not None:
            self._map.flush()
            self._map = None


@contextlib.contextmanager
def writing_probabilities(
    path: str | Path, like: Volume, outside: Mapping[str, float], *, calibrated: bool = False
) -> Iterator[ProbabilityFile]:
    """Create a 4D NIfTI file of probabilities; it has a temporary name until it is complete.

    A header extension of the type "comment" holds a JSON object with the names of the volumes, and whether they are
    calibrated: ``{"volumes": [...], "calibrated": true}``.

    Args:
        path: Name that ends with ``.nii``; compressed files cannot be written in arbitrary order.
        like: Volume with the grid and geometry fields of the file.
        outside: Name of each class or region, with its probability where none is written.
        calibrated: Whether the probabilities are those of logits that were divided by fitted temperatures.

    Yields:
        The open file.

    Raises:
        DataError: The suffix is not ``.nii``, or the folder cannot be written.
    """
    comment = {"volumes": list(outside), "calibrated": calibrated}
    shape = (*like.grid.shape, len(outside))
    with _writing(Path(path), like, shape, comment, tuple(outside.values())) as file:
        yield file


@contextlib.contextmanager
def writing_uncertainty(path: str | Path, like: Volume) -> Iterator[ProbabilityFile]:
    """Create a 3D NIfTI file of entropies between 0 and 1; it has a temporary name until it is complete.

    Args:
        path: Name that ends with ``.nii``; compressed files cannot be written in arbitrary order.
        like: Volume with the grid and geometry fields of the file.

    Yields:
        The open file, whose array has one volume; 0 where nothing is written.

    Raises:
        DataError: The suffix is not ``.nii``, or the folder cannot be written.
    """
    with _writing(Path(path), like, like.grid.shape, {"volume": "entropy"}, (0.0,)) as file:
        yield file


@contextlib.contextmanager
def _writing(
    path: Path, like: Volume, shape: tuple[int, ...], comment: Mapping[str, Any], outside: Sequence[float]
) -> Iterator[ProbabilityFile]:
    """Create a NIfTI file of multiples of 1/65535, one volume per value of `outside`."""
    if path.suffix != ".nii":
        raise DataError(f"{path}: found suffix {path.suffix!r}, expected .nii for probabilities. Rename it.")
    header = geometry_header(like, shape, np.dtype("<u2"))
    header.set_slope_inter(1 / TOP, 0)
    text = json.dumps(comment, ensure_ascii=False)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", text.encode()))
    header["vox_offset"] = offset = int(header["sizeof_hdr"]) + 4 + header.extensions.get_sizeondisk()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            header.write_to(file)
            for index, value in enumerate(outside):
                if value:
                    file.seek(offset + index * _stored_bytes(like.grid.shape))
                    _fill(file, like.grid.shape, value)
            _reserve(file, offset + _stored_bytes(shape))
        opened = ProbabilityFile(temporary, offset, (*like.grid.shape, len(outside)))
        try:
            yield opened
        finally:
            opened.close()


def _fill(file: BinaryIO, shape: tuple[int, ...], value: float) -> None:
    """Write a volume with one probability everywhere, slice by slice."""
    plane = np.full(shape[:2], np.rint(value * TOP), "<u2").tobytes()
    for _ in range(shape[2]):
        file.write(plane)


def _stored_bytes(shape: tuple[int, ...]) -> int:
    """Return the size in bytes of an array of this shape in the file."""
    return math.prod(shape) * BYTES_PER_PROBABILITY


def _reserve(file: BinaryIO, size: int) -> None:
    """Allocate the disk space of the file; writing to mapped pages on a full disk would end the process."""
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
    """Read the slices of a file that `writing_probabilities` created.

    Args:
        path: The file.

    Yields:
        Encoded probabilities `(X, Y, K)`, one slice after the other along the third axis.
    """
    image = nib.load(path, mmap=False)
    proxy = nib.arrayproxy.ArrayProxy(
        str(path), (image.shape, image.get_data_dtype(), image.dataobj.offset), mmap=False
    )
    for index in range(image.shape[2]):
        # Slices are read instead of mapped, because mapped pages count as memory of the process.
        yield np.asarray(proxy[:, :, index])
