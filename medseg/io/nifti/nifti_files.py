"""Reading and writing of NIfTI-1 and NIfTI-2 files with nibabel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, warn_once
from medseg.io.file_content import permission_denied
from medseg.io.gzip_stream import GzipStream, Stream, compressing, opened, skip
from medseg.io.nifti.nifti_geometry import UNITS_MASK, Placement, in_mm, placement
from medseg.io.nifti.nifti_header import NiftiFile, open_nifti
from medseg.io.nifti.nifti_label_names import label_table
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import error_reason
from medseg.storage.archives import DEFLATE_LIMIT
from medseg.storage.atomic import replacing
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_CHUNK_BYTES = 16 << 20
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_NIFTI1_LARGEST_AXIS = 32767


def read_nifti(path: Path, orientation_from: OrientationFrom | None = None) -> Volume:
    """Read a NIfTI file as an image volume.

    A 2D image becomes one slice; a fourth or fifth axis, or RGB, becomes channels. Integer files without
    scaling keep their type; all others become float32. If the header states metres or microns, the affine is converted
    to mm. What the header contradicts is reported once as a `DataWarning`.

    Args:
        path: The file.
        orientation_from: Description of the geometry to use where a header leaves it open; see
            `medseg.io.nifti.nifti_geometry.placement`.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image``, with the geometry fields of the header unless these contradict each
        other.

    Raises:
        DataError: The file is missing, damaged, or not NIfTI, or its orientation is a guess.
    """
    file = open_nifti(path)
    placed = _placed(file, orientation_from)
    return Volume(_voxels(file), placed.grid, header=_geometry(file.header) if placed.consistent else {})


def read_nifti_grid(path: Path, orientation_from: OrientationFrom | None = None) -> Grid:
    """Read shape and affine from the header.

    Args:
        path: The file.
        orientation_from: Description of the geometry to use where a header leaves it open.

    Returns:
        Grid of three axes with an affine in mm.

    Raises:
        DataError: The file is missing, damaged, or not NIfTI, or its orientation is a guess.
    """
    return _placed(open_nifti(path), orientation_from).grid


def nifti_bytes(path: Path) -> int:
    """Return the memory that the voxels take once they are read; only the header is read.

    Args:
        path: The file.

    Returns:
        Bytes of the array that `read_nifti` returns.

    Raises:
        DataError: The file is missing, damaged, or not NIfTI.
    """
    file = open_nifti(path)
    components = len(file.dtype.names or "1")
    return math.prod(file.shape) * components * _dtype_in_memory(file).itemsize


def _placed(file: NiftiFile, orientation_from: OrientationFrom | None) -> Placement:
    """Return the placement of a file, and warn of everything that its header contradicts in one line."""
    placed = placement(file, orientation_from)
    notes = (*file.notes, *placed.notes)
    if notes:
        warn_once(f"{file.path}: {' '.join(notes)}")
    return placed


def write_nifti(volume: Volume, path: Path, names: Labels | None = None) -> None:
    """Write a volume; a grid that came from a NIfTI file is written with the geometry of that file, bit for bit.

    One channel is written as 3D, several as 4D. NIfTI-2, which not every tool reads, is written only if the geometry
    came from such a file, whose affine has double precision, or if an axis is too long for NIfTI-1. The bytes are
    reproducible: no time, no name, no text fields from the source. `storable` chooses the data type.

    Args:
        volume: The volume.
        path: The file to create or replace, ``.nii`` or ``.nii.gz``.
        names: Names and colours of label values, which are stored in a header extension; None for none.

    Raises:
        DataError: Voxels are not real numbers, or the file cannot be written.
    """
    data = storable(volume.data, path)
    data = data[0] if volume.channels == 1 else np.moveaxis(data, 0, -1)
    header = geometry_header(volume, data.shape, data.dtype)
    if names is not None:
        header.extensions.append(nib.nifti1.Nifti1Extension("ignore", label_table(names)))
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(data, header.get_best_affine(), header)  # in the units of the header
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            with compressing(raw) as file:
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
    nifti = "srow_x" in volume.header
    double = nifti and volume.header["srow_x"].dtype.itemsize == 8
    header = (nib.Nifti2Header if double or max(shape) > _NIFTI1_LARGEST_AXIS else nib.Nifti1Header)()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["descrip"] = b"medseg"
    header.set_xyzt_units("mm")
    if nifti:
        kept = header.copy()
        for name in _GEOMETRY_FIELDS:
            kept[name] = volume.header[name]
        kept["pixdim"][:4] = volume.header["pixdim"]
        kept["xyzt_units"] = volume.header["units"]
        affine = in_mm(kept.get_best_affine(), volume.header["units"])
        if np.allclose(affine, volume.grid.affine, rtol=1e-6, atol=1e-6):
            return kept
    header.set_zooms((*volume.spacing, *[1.0] * (len(shape) - 3)))
    header.set_sform(volume.grid.affine, code=1)
    if not volume.grid.is_sheared:  # a quaternion cannot hold shear
        header.set_qform(volume.grid.affine, code=1)
        # Near rotations by 180 degrees, single precision states the angle so coarsely that the quaternion would contradict
        # the sform.
        if not Grid(volume.grid.shape, header.get_qform()).matches(volume.grid):
            header["qform_code"] = 0
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


def _voxels(file: NiftiFile) -> NDArray[Any]:
    """Read the voxels directly into their final array `(C, X, Y, Z)`, so that there is never a second copy."""
    shape = (*file.shape, 1, 1)[:3]
    channels = math.prod(file.shape[3:]) * len(file.dtype.names or "1")
    dtype = _dtype_in_memory(file)
    what = f"expected {file.shape} voxels of {file.dtype}"
    try:
        _check_size(file)
        data = np.empty((channels, *shape), dtype)
        with opened(file.voxel_file, packed=file.packed) as stream:
            skip(stream, file.offset)
            _fill(data, stream, file)
            trailing = _drained(stream)
    except FileNotFoundError:
        raise DataError(
            f"{file.path}: the voxels are in another file, {file.voxel_file.name}, which is missing. Copy it to the same "
            "folder."
        ) from None
    except PermissionError:
        raise permission_denied(file.voxel_file) from None
    except MemoryError:
        size = channels * math.prod(shape) * dtype.itemsize
        raise DataError(
            f"{file.path}: not enough memory for its voxels: found no {size} bytes, {what}. Free memory, or crop the image."
        ) from None
    except (OSError, EOFError) as error:
        raise DataError(
            f"{file.path}: voxel data are damaged or end early ({error_reason(error)}); {what}. Copy the file again."
        ) from None
    if trailing:
        warn_once(
            f"{file.path}: found {trailing} bytes after the voxels, {what} and nothing else. They are ignored; check that dim "
            "is right."
        )
    return data


def _drained(stream: Stream) -> int:
    """Read a stream to its end, where the checksum of gzip data is compared; return the number of bytes left over."""
    left = 0
    while rest := stream.read(_CHUNK_BYTES):
        left += len(rest)
    return left + (stream.trailing if isinstance(stream, GzipStream) else 0)


def _fill(data: NDArray[Any], stream: Stream, file: NiftiFile) -> None:
    """Read slabs of slices (in files, x varies fastest) into `data`, scaled if the header says so."""
    dtype, (slope, inter) = file.dtype, file.scaling
    components, (_, width, height, depth) = len(dtype.names or "1"), data.shape
    slab = max(1, min(depth, _CHUNK_BYTES // (width * height * dtype.itemsize)))
    done = 0
    for first in range(0, len(data), components):
        for start in range(0, depth, slab):
            slices = min(slab, depth - start)
            wanted = width * height * slices * dtype.itemsize
            content = _slab(stream, wanted, done, file)
            done += wanted
            block = np.frombuffer(content, dtype).reshape((width, height, slices), order="F")
            parts = [block[name] for name in dtype.names] if dtype.names else [block]
            for channel, values in enumerate(parts, first):
                scaled = values.astype(np.float64) * slope + inter if _is_scaled(file) else values
                with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
                    data[channel, :, :, start : start + slices] = scaled


def _slab(stream: Stream, wanted: int, done: int, file: NiftiFile) -> bytes:
    """Read the bytes of some slices, after those that were read before."""
    try:
        content = stream.read(wanted)
        done += len(content)
    except EOFError:
        if not isinstance(stream, GzipStream):
            raise
        content, done = b"", max(0, stream.position - file.offset)
    if len(content) < wanted:
        raise EOFError(f"found {done} of {file.voxel_bytes} bytes")
    return content


def _dtype_in_memory(file: NiftiFile) -> np.dtype[Any]:
    if file.dtype.names:  # RGB and RGBA are structured types of bytes
        return np.dtype(np.uint8)
    if _is_scaled(file) or file.dtype.kind == "f":
        return np.dtype(np.float32)
    native: np.dtype[Any] = file.dtype.newbyteorder("=")
    return native


def _is_scaled(file: NiftiFile) -> bool:
    return file.scaling != (1, 0) and not file.dtype.names


def _check_size(file: NiftiFile) -> None:
    """Raise for a header that claims more voxels than its file can hold, before memory is allocated."""
    size = file.voxel_file.stat().st_size
    limit = size * DEFLATE_LIMIT if file.packed else size
    if file.offset > limit:
        raise DataError(
            f"{file.path}: vox_offset: found {file.offset}, expected a byte of the file, which has {size}. Copy the file again or "
            "convert it."
        )
    if file.offset > limit - file.voxel_bytes:
        raise EOFError(
            f"found {size} bytes in the file, {file.voxel_bytes} of voxels from byte {file.offset} declared"
        )


def _geometry(header: Any) -> MappingProxyType[str, Any]:
    fields: dict[str, Any] = {name: np.array(header[name]) for name in _GEOMETRY_FIELDS}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    fields["units"] = int(header["xyzt_units"]) & UNITS_MASK
    return MappingProxyType(fields)
