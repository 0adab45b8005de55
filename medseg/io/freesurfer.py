"""FreeSurfer's volumes: ``.mgh``, and ``.mgz``, which is the same compressed.

nibabel reads and writes the header, which states the voxel size, the directions of the axes, and the middle of the volume.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, warn_once
from medseg.io.file_content import require_readable
from medseg.io.gzip_stream import Stream, compressing, opened, skip
from medseg.runtime.out_of_memory import is_out_of_memory
from medseg.storage.atomic import replacing
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from nibabel.freesurfer.mghformat import MGHHeader

_MAGIC = b"\x00\x00\x00\x01"  # version 1
_HEADER_BYTES = 284
_GOOD_RAS = slice(28, 30)
_FIELD_BYTES = 90  # of the header; the rest is unused
_MOST_PACKED = 1032  # largest ratio that deflate reaches
_TYPES = {"uint8": "u1", "int16": "i2", "int32": "i4", "float32": "f4"}


def read_freesurfer(path: Path) -> Volume:
    """Read a volume of FreeSurfer.

    Args:
        path: The file.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image`` in the stored type; frames are channels.

    Raises:
        DataError: The file is missing, damaged or cut off, or states no directions, so that left and right are unknown.
    """
    require_readable(path, "an image of FreeSurfer")
    packed = path.suffix.lower() == ".mgz"
    try:
        with opened(path, packed=packed) as stream:
            header = _header(stream.read(_HEADER_BYTES), path)
            shape, dtype = _layout(header, path, packed=packed)
            data = _voxels(stream, shape, dtype, path)
            skip(
                stream, path.stat().st_size * _MOST_PACKED
            )  # the footer; reaching the end verifies the checksum
            if getattr(stream, "trailing", 0):
                warn_once(
                    f"{path}: found {stream.trailing} bytes after the compressed data, expected none; these bytes are ignored."  # type: ignore[attr-defined]
                )
    except (EOFError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"{path}: found damaged or incomplete voxels ({error}), expected an image of FreeSurfer. Copy or convert the file again."
        ) from None
    grid = Grid((shape[0], shape[1], shape[2]), _affine(header, path))
    return Volume(np.ascontiguousarray(np.moveaxis(data, -1, 0)), grid)


def write_freesurfer(volume: Volume, path: Path) -> None:
    """Write a volume in FreeSurfer's format; channels are frames.

    Args:
        volume: The volume.
        path: The file to create or replace, ``.mgz`` or ``.mgh``.

    Raises:
        DataError: The values do not fit one of the types of the format, the grid is sheared, which it cannot state, or the file
            cannot be written.
    """
    from nibabel.freesurfer.mghformat import MGHImage

    if volume.grid.is_sheared:
        raise DataError(
            f"{path}: the grid is sheared, which this format cannot state. Write .nii.gz instead."
        )
    data = np.moveaxis(_storable(volume.data, path), 0, -1)
    data = data[..., 0] if data.shape[-1] == 1 else data
    header = MGHImage(data, volume.grid.affine.astype(np.float64)).header
    with replacing(path) as temporary, temporary.open("wb") as file:
        voxels = data.astype(data.dtype.newbyteorder(">")).tobytes(order="F")
        if path.suffix.lower() == ".mgz":
            with compressing(file) as stream:
                _put(stream, header, voxels)
        else:
            _put(file, header, voxels)


def _put(stream: Any, header: MGHHeader, voxels: bytes) -> None:
    block = header.binaryblock
    stream.write(block[:_FIELD_BYTES].ljust(_HEADER_BYTES, b"\0"))
    stream.write(voxels)
    stream.write(block[_FIELD_BYTES:])


def _header(block: bytes, path: Path) -> MGHHeader:
    from nibabel.freesurfer.mghformat import MGHHeader

    if len(block) < _HEADER_BYTES or not block.startswith(_MAGIC):
        raise DataError(
            f"{path}: found no header of version 1, expected an image of FreeSurfer. Convert the file with mri_convert."
        )
    if not any(block[_GOOD_RAS]):  # nibabel would take FreeSurfer's default directions
        raise DataError(
            f"{path}: goodRASFlag: found 0, expected 1: the file states no directions, so that left and right are unknown. Write the "
            "directions into it with mri_convert."
        )
    return MGHHeader(block[:_FIELD_BYTES], check=False)


def _layout(header: MGHHeader, path: Path, *, packed: bool) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape `(X, Y, Z, C)` and stored type after checking them against the size of the file."""
    dims = tuple(int(size) for size in header["dims"])
    names = {0: "u1", 4: "i2", 1: "i4", 3: "f4"}
    kind = int(header["type"])
    if kind not in names:
        raise DataError(
            f"{path}: type: found {kind}, expected 0 (uint8), 1 (int32), 3 (float32) or 4 (int16). Convert the file with mri_convert."
        )
    dtype = np.dtype(f">{names[kind]}")
    if min(dims) < 1:
        raise DataError(
            f"{path}: dimensions: found {dims}, expected at least 1 each. Convert the file again."
        )
    most = path.stat().st_size * (_MOST_PACKED if packed else 1)
    if math.prod(dims) * dtype.itemsize > most:
        raise DataError(
            f"{path}: found {path.stat().st_size} bytes for {' x '.join(map(str, dims))} voxels of {dtype.itemsize} bytes, expected more. Copy the file "
            "again."
        )
    return dims, dtype


def _voxels(stream: Stream, shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise DataError(
            f"{path}: found {len(content)} bytes of voxels, expected {size}: the file is cut off. Copy it again."
        )
    stored = np.frombuffer(content, dtype).reshape(shape, order="F")
    return stored.astype(dtype.newbyteorder("="))


def _affine(header: MGHHeader, path: Path) -> NDArray[np.float64]:
    affine = np.asarray(header.get_affine(), np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(
            f"{path}: directions: found {affine[:3, :3].tolist()}, expected three independent axes. Convert the file again."
        )
    return affine


def _storable(data: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return voxels in one of the types of the format, with the same values."""
    if str(data.dtype) in _TYPES:
        return data
    if data.dtype == bool:
        return data.astype(np.uint8)
    if data.dtype.kind == "f":
        return data.astype(np.float32)
    if data.dtype.kind in "iu":
        for name in ("uint8", "int16", "int32"):
            limits = np.iinfo(name)
            if data.size == 0 or (limits.min <= data.min() and data.max() <= limits.max):
                return data.astype(name)
    raise DataError(
        f"{path}: cannot write voxels of {data.dtype} up to {data.max()}, expected real numbers that fit int32. Convert them."
    )
