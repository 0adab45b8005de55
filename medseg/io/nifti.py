"""NIfTI-1 and NIfTI-2 in and out, with nibabel."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.geometry import Grid
from medseg.io.atomic import replacing
from medseg.volume import Volume

_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_SPATIAL_UNITS_MASK = 0b111


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI file as an image volume.

    A 2-D image becomes one slice; a fourth or fifth axis, or RGB, becomes channels. Integer files without
    scaling keep their type; all others are float32. The affine is nibabel's choice: sform, else qform,
    else the header's fallback.
    """
    image = _open(path, whole=True)
    return Volume(_voxels(image, path), read_nifti_grid(path, image), header=_geometry(image.header))


def read_nifti_grid(path: Path, image: Any = None) -> Grid:
    """Read only the header: shape and affine."""
    image = image if image is not None else _open(path)
    shape = (*image.shape, 1, 1)[:3]
    try:
        return Grid(shape, image.affine)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume; a grid that came from a NIfTI file is written with that file's geometry, bit for bit.

    One channel is written as 3-D, several as 4-D. Bytes are reproducible: no time, no name, no text fields
    from the source. Booleans become uint8, half floats float32, 64-bit integers the smallest type that fits.
    """
    data = _storable(volume.data)
    data = data[0] if volume.channels == 1 else np.moveaxis(data, 0, -1)
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header["descrip"] = b"medseg"
    header.set_xyzt_units("mm")
    if volume.header:
        for name in _GEOMETRY_FIELDS:
            header[name] = volume.header[name]
        header["pixdim"][:4] = volume.header["pixdim"]
        header["xyzt_units"] = volume.header["units"]
    else:
        header.set_zooms((*volume.spacing, *[1.0] * (data.ndim - 3)))
        header.set_sform(volume.grid.affine, code=1)
        if volume.grid.shear < 1e-4:  # a quaternion cannot hold shear
            header.set_qform(volume.grid.affine, code=1)
    image = nib.Nifti1Image(data, volume.grid.affine, header)
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=raw, mtime=0) as file:
                image.to_stream(file)
        else:
            image.to_stream(raw)


def _open(path: Path, *, whole: bool = False) -> Any:
    """Open the header, or with `whole` also the voxels of a .gz, which verifies its checksum."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    try:
        image = _from_gzip(path) if whole and path.name.endswith(".gz") else nib.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
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
            f"{path}: datatype: found {image.get_data_dtype()}, expected real numbers. Save the magnitude."
        )
    return image


def _voxels(image: Any, path: Path) -> NDArray[Any]:
    try:
        stored = np.asanyarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{path}: voxel data are damaged or end early ({_reason(error)}); expected {image.shape} voxels of "
            f"{image.get_data_dtype()}. Copy the file again."
        ) from None
    if stored.dtype.names:  # RGB and RGBA are structured types
        stored = np.stack([stored[name] for name in stored.dtype.names], axis=-1)
    elif stored.dtype.kind == "f":
        stored = stored.astype(np.float32, copy=False)
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    spatial = native.reshape((*native.shape, 1, 1)[:3] if native.ndim < 3 else native.shape)
    channels = spatial.reshape(*spatial.shape[:3], -1)
    return np.ascontiguousarray(np.moveaxis(channels, -1, 0))


def _from_gzip(path: Path) -> Any:
    """Decompress once, to the end, because only there the stream's checksum is compared."""
    with gzip.open(path) as stream:
        content = stream.read()
    sizes = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Image if 540 in sizes else nib.Nifti1Image
    return kind.from_bytes(content)


def _geometry(header: Any) -> MappingProxyType[str, Any]:
    fields: dict[str, Any] = {name: np.array(header[name]) for name in _GEOMETRY_FIELDS}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    fields["units"] = int(header["xyzt_units"]) & _SPATIAL_UNITS_MASK
    return MappingProxyType(fields)


def _storable(data: NDArray[Any]) -> NDArray[Any]:
    if data.dtype == bool:
        return data.astype(np.uint8)
    if data.dtype == np.float16:
        return data.astype(np.float32)
    if data.dtype in (np.int64, np.uint64):
        return data.astype(np.result_type(np.min_scalar_type(data.min()), np.min_scalar_type(data.max())))
    return data


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
