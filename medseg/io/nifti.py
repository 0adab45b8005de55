"""Reading and writing of NIfTI-1 and NIfTI-2 files with nibabel."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.storage.atomic import replacing
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

Stream = gzip.GzipFile | io.BufferedReader
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_SPATIAL_UNITS_MASK = 0b111
_MM = {1: 1000.0, 3: 0.001}  # per metre and per micron; all other codes count as mm
_CHUNK_BYTES = 16 << 20
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_DEFLATE_LIMIT = 1100  # a .gz file cannot expand to more than about 1032 times its size
_NIFTI1_LARGEST_AXIS = 32767
_UNREADABLE = (  # what nibabel and gzip raise for files that are not NIfTI
    *(ImageFileError, HeaderDataError, OSError, EOFError, zlib.error),
    *(ValueError, TypeError, KeyError, OverflowError, MemoryError),
)


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI file as an image volume.

    A 2D image becomes one slice; a fourth or fifth axis, or RGB, becomes channels. Integer files without
    scaling keep their type; all others become float32. The affine is chosen as nibabel does: sform, else qform,
    else the fallback of the header. If the header states metres or microns, it is converted to mm.

    Args:
        path: The file.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image``, with the geometry fields of the header.

    Raises:
        DataError: The file is missing, damaged, or not NIfTI.
    """
    image = _open(path)
    grid = read_nifti_grid(path, image)
    return Volume(_voxels(image, path), grid, header=_geometry(image.header))


def read_nifti_grid(path: Path, image: Any = None) -> Grid:
    """Read shape and affine from the header.

    Args:
        path: The file.
        image: The opened file; None to open it.

    Returns:
        Grid of three axes with an affine in mm.

    Raises:
        DataError: The file is missing, damaged, or not NIfTI.
    """
    image = image if image is not None else _open(path)
    shape = (*image.shape, 1, 1)[:3]
    try:
        return Grid(shape, _in_mm(image.affine, image.header["xyzt_units"]))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def nifti_bytes(path: Path) -> int:
    """Return the memory that the voxels take once they are read; only the header is read.

    Args:
        path: The file.

    Returns:
        Bytes of the array that `read_nifti` returns.

    Raises:
        DataError: The file is missing, damaged, or not NIfTI.
    """
    image = _open(path)
    components = len(image.dataobj.dtype.names or "1")
    return int(math.prod(image.shape)) * components * _dtype_in_memory(image.dataobj).itemsize


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume; a grid that came from a NIfTI file is written with the geometry of that file, bit for bit.

    One channel is written as 3D, several as 4D. NIfTI-2, which not every tool reads, is written only if the geometry
    came from such a file, whose affine has double precision, or if an axis is too long for NIfTI-1. The bytes are
    reproducible: no time, no name, no text fields from the source. `storable` chooses the data type.

    Args:
        volume: The volume.
        path: The file to create or replace, ``.nii`` or ``.nii.gz``.

    Raises:
        DataError: Voxels are not real numbers, or the file cannot be written.
    """
    data = storable(volume.data, path)
    data = data[0] if volume.channels == 1 else np.moveaxis(data, 0, -1)
    header = geometry_header(volume, data.shape, data.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(data, header.get_best_affine(), header)  # in the units of the header
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=raw, mtime=0) as file:
                image.to_stream(file)
        else:
            image.to_stream(raw)


def geometry_header(volume: Volume, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
    """Return a NIfTI header with the geometry of the source file if the volume still has it, else of the grid.

    Args:
        volume: Volume whose geometry is written.
        shape: Shape of the voxels in the file.
        dtype: Data type of the voxels in the file.

    Returns:
        A nibabel header: NIfTI-2 if the source file was NIfTI-2 or an axis is too long for NIfTI-1, else NIfTI-1.
    """
    # NIfTI-2 keeps the affine in double precision, so a volume from such a file is written as NIfTI-2.
    double = volume.header and volume.header["srow_x"].dtype.itemsize == 8
    header = (nib.Nifti2Header if double or max(shape) > _NIFTI1_LARGEST_AXIS else nib.Nifti1Header)()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["descrip"] = b"medseg"
    header.set_xyzt_units("mm")
    if volume.header:
        kept = header.copy()
        for name in _GEOMETRY_FIELDS:
            kept[name] = volume.header[name]
        kept["pixdim"][:4] = volume.header["pixdim"]
        kept["xyzt_units"] = volume.header["units"]
        affine = _in_mm(kept.get_best_affine(), volume.header["units"])
        if np.allclose(affine, volume.grid.affine, rtol=1e-6, atol=1e-6):
            return kept
    header.set_zooms((*volume.spacing, *[1.0] * (len(shape) - 3)))
    header.set_sform(volume.grid.affine, code=1)
    if not volume.grid.is_sheared:  # a quaternion cannot hold shear
        header.set_qform(volume.grid.affine, code=1)
    return header


def storable(data: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return voxels in a type that every format supports, with the same values.

    Booleans become uint8, half floats float32, 64-bit integers the smallest integer type that fits.

    Args:
        data: Voxels of any shape.
        path: The file to write, for messages.

    Returns:
        Voxels of the same shape in native byte order, not copied if they are stored that way already.

    Raises:
        DataError: Voxels are not real numbers.
    """
    if data.dtype.kind not in "biuf":
        raise DataError(f"{path}: cannot write voxels of {data.dtype}, expected real numbers. Convert them.")
    if data.dtype == bool:
        return data.astype(np.uint8)
    if data.dtype == np.float16:
        return data.astype(np.float32)
    if data.dtype.kind in "iu" and data.dtype.itemsize == 8:
        low, high = int(data.min()), int(data.max())
        fits = (t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
        return data.astype(next(fits), copy=False)
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _open(path: Path) -> Any:
    """Read and check the header."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: found 0 bytes, expected a NIfTI file. Copy or download the file again.")
    try:
        image: Any = nib.load(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: not a readable NIfTI file ({_reason(error)}). Copy the file again or convert it."
        ) from None
    if not isinstance(image, (nib.Nifti1Image, nib.Nifti1Pair)):
        raise DataError(f"{path}: found {type(image).__name__}, expected NIfTI. Convert the file.")
    if not 2 <= len(image.shape) <= 5 or min(image.shape) < 1:
        raise DataError(
            f"{path}: dim: found {image.shape}, expected 2 to 5 axes, none empty. Check the file."
        )
    if image.get_data_dtype().kind == "c":
        raise DataError(
            f"{path}: datatype: found {image.get_data_dtype()}, expected real numbers. Save the magnitude of the complex numbers."
        )
    return image


def _voxels(image: Any, path: Path) -> NDArray[Any]:
    """Read the voxels directly into their final array `(C, X, Y, Z)`, so that there is never a second copy."""
    proxy = image.dataobj
    stored: np.dtype[Any] = proxy.dtype
    shape = (*image.shape, 1, 1)[:3]
    volumes = math.prod(image.shape[3:])
    file = Path(proxy.file_like)
    try:
        _check_size(file, proxy.offset, math.prod(image.shape) * stored.itemsize)
        data = np.empty((volumes * len(stored.names or "1"), *shape), _dtype_in_memory(proxy))
        with _decompressed(file) as stream:
            stream.seek(proxy.offset)
            _fill(data, stream, proxy)
            while stream.read(_CHUNK_BYTES):  # the checksum of a .gz file is compared at its end
                pass
    except FileNotFoundError:
        raise DataError(
            f"{path}: the voxels are in another file, {file.name}, which is missing. Copy it to the same folder."
        ) from None
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: voxel data are damaged or end early ({_reason(error)}); expected {image.shape} voxels of "
            f"{stored}. Copy the file again."
        ) from None
    return data


def _fill(data: NDArray[Any], stream: Stream, proxy: Any) -> None:
    """Read slabs of slices (in files, x varies fastest) into `data`, scaled if the header says so."""
    components, (_, width, height, depth) = len(proxy.dtype.names or "1"), data.shape
    slab = max(1, min(depth, _CHUNK_BYTES // (width * height * proxy.dtype.itemsize)))
    for first in range(0, len(data), components):
        for start in range(0, depth, slab):
            slices = min(slab, depth - start)
            wanted = width * height * slices * proxy.dtype.itemsize
            content = stream.read(wanted)
            if len(content) < wanted:
                raise EOFError(f"found {len(content)} of {wanted} bytes from slice {start + 1} of {depth}")
            block = np.frombuffer(content, proxy.dtype).reshape((width, height, slices), order="F")
            parts = [block[name] for name in proxy.dtype.names] if proxy.dtype.names else [block]
            for channel, values in enumerate(parts, first):
                scaled = (
                    values.astype(np.float64) * proxy.slope + proxy.inter if _is_scaled(proxy) else values
                )
                with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
                    data[channel, :, :, start : start + slices] = scaled


def _dtype_in_memory(proxy: Any) -> np.dtype[Any]:
    if proxy.dtype.names:  # RGB and RGBA are structured types of bytes
        return np.dtype(np.uint8)
    if _is_scaled(proxy) or proxy.dtype.kind == "f":
        return np.dtype(np.float32)
    native: np.dtype[Any] = proxy.dtype.newbyteorder("=")
    return native


def _is_scaled(proxy: Any) -> bool:
    return (proxy.slope, proxy.inter) != (1, 0) and not proxy.dtype.names


def _check_size(file: Path, offset: int, voxel_bytes: int) -> None:
    """Raise for a header that claims more voxels than its file can hold, before memory is allocated."""
    size = file.stat().st_size
    limit = size * _DEFLATE_LIMIT if file.name.lower().endswith(".gz") else size
    if not 0 <= offset <= limit - voxel_bytes:
        raise EOFError(f"found {size} bytes in the file, {voxel_bytes} of voxels from byte {offset} declared")


def _decompressed(file: Path) -> Stream:
    return gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb")


def _geometry(header: Any) -> MappingProxyType[str, Any]:
    fields: dict[str, Any] = {name: np.array(header[name]) for name in _GEOMETRY_FIELDS}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    fields["units"] = int(header["xyzt_units"]) & _SPATIAL_UNITS_MASK
    return MappingProxyType(fields)


def _in_mm(affine: NDArray[np.float64], units: Any) -> NDArray[np.float64]:
    """Return an affine in mm, for a header whose field `xyzt_units` is `units`."""
    factor = _MM.get(int(units) & _SPATIAL_UNITS_MASK)
    return affine if factor is None else affine * np.array([[factor], [factor], [factor], [1.0]])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
