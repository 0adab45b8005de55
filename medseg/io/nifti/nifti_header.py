"""Headers of NIfTI files: what kind of file it is, and checks of each field before a voxel is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.nifti1 import data_type_codes

from medseg.errors import DataError
from medseg.io.file_content import GZIP, head_of, recognised_content, require_readable
from medseg.io.gzip_stream import Stream, opened, skip

_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_EXTENSION_FLAG_BYTES = 4
_BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_LONGEST_EXTENSION = 1 << 30
_READABLE_TYPES = (2, 4, 8, 16, 64, 128, 256, 512, 768, 1024, 1280, 2304)


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file with a checked header.

    Attributes:
        path: The file that was named.
        header: The header, a nibabel object.
        voxel_file: File with the voxels; another one than `path` for a pair of .hdr and .img.
        packed: Whether the file with the voxels is gzip data.
        shape: Voxels along each axis of the file, 2 to 5 axes.
        dtype: Stored type of the voxels.
        scaling: Slope and intercept; (1, 0) if voxels are not scaled.
        offset: Byte of the first voxel.
        notes: Contradictions that do not prevent reading, one sentence each.
    """

    path: Path
    header: Any
    voxel_file: Path
    packed: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scaling: tuple[float, float]
    offset: int
    notes: tuple[str, ...]

    @property
    def voxel_bytes(self) -> int:
        """The number of bytes of all voxels as stored."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_nifti(path: Path) -> NiftiFile:
    """Read and check a header; the voxels may be missing or damaged.

    Args:
        path: A .nii, .nii.gz, .hdr or .img file. Whether it is gzip data is decided by its content.

    Returns:
        The file.

    Raises:
        DataError: There is no readable file, it is something else than NIfTI, or a field is not valid.
    """
    header_file, voxel_file = _files_of(path)
    require_readable(header_file, "a NIfTI file")
    packed = head_of(header_file).startswith(GZIP)
    head = _start_of(header_file, packed, path)
    header, notes = _parsed(head, path)
    single = header_file == voxel_file
    offset = _offset(header, path, single)
    notes += _naming(path, packed)
    dtype = _dtype(header, path)
    if int(header["bitpix"]) != dtype.itemsize * 8:
        notes.append(
            f"bitpix: found {int(header['bitpix'])}, expected {dtype.itemsize * 8} for {dtype}; datatype is used."
        )
    if single:
        notes += _broken_extensions(header_file, packed, header, offset)
    shape, scaling = _shape(header, path), _scaling(header, path)
    voxels_packed = packed if single else voxel_file.is_file() and head_of(voxel_file).startswith(GZIP)
    return NiftiFile(path, header, voxel_file, voxels_packed, shape, dtype, scaling, offset, tuple(notes))


def _files_of(path: Path) -> tuple[Path, Path]:
    """Return the files of the header and of the voxels, which differ for a pair of .hdr and .img."""
    suffix = path.suffix.lower()
    if suffix not in (".hdr", ".img"):
        return path, path
    names = (".HDR", ".IMG") if path.suffix.isupper() else (".hdr", ".img")
    header, voxels = (path if suffix == name.lower() else path.with_suffix(name) for name in names)
    if not header.exists():
        require_readable(path, "a NIfTI file")
        raise DataError(
            f"{path}: the header is in another file, {header.name}, which is missing. Copy it to the same folder."
        )
    return header, voxels


def _start_of(file: Path, packed: bool, path: Path) -> bytes:
    """Return the bytes of a header, or fewer if the file is shorter."""
    try:
        with opened(file, packed=packed) as stream:
            return stream.read(_NIFTI2_BYTES + _EXTENSION_FLAG_BYTES)
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path}: not a readable NIfTI file: found damaged gzip data ({error}). Copy the file again."
        ) from None


def _parsed(head: bytes, path: Path) -> tuple[Any, list[str]]:
    """Return the header, and notes; byte order and version are found by size, magic and number of axes."""
    for kind, size, magic_at, axes_at, axes_bytes in (
        (nib.Nifti1Header, _NIFTI1_BYTES, 344, 40, 2),
        (nib.Nifti2Header, _NIFTI2_BYTES, 4, 16, 8),
    ):
        if len(head) < size:
            continue
        magic = head[magic_at : magic_at + 4]
        known = magic[:2] in (b"n+", b"ni") and magic[2:3] == (b"1" if size == _NIFTI1_BYTES else b"2")
        sized = next((o for o in _BYTE_ORDERS if int.from_bytes(head[:4], o) == size), None)
        if sized and not known:
            raise _wrong_magic(magic, size, path)
        if not known:
            continue
        axes = head[axes_at : axes_at + axes_bytes]
        counted = next((o for o in _BYTE_ORDERS if 1 <= int.from_bytes(axes, o) <= 7), _BYTE_ORDERS[0])
        order = counted if sized is None else sized
        notes = (
            []
            if sized
            else [
                f"sizeof_hdr: found {int.from_bytes(head[:4], order)}, expected {size}. Save the file again for other programs."
            ]
        )
        return kind(head[:size], endianness="<" if order == "little" else ">", check=False), notes
    content, remedy = recognised_content(head)
    if content == "unknown content" and len(head) < _NIFTI1_BYTES:
        content = f"{len(head)} bytes"
    raise DataError(
        f"{path}: not a readable NIfTI file: found {content}, expected a header of 348 or 540 bytes. {remedy}."
    )


def _wrong_magic(magic: bytes, size: int, path: Path) -> DataError:
    if size == _NIFTI1_BYTES and not magic.strip(b"\0"):
        return DataError(
            f"{path}: found Analyze 7.5, expected NIfTI, because Analyze does not state left and right. Convert the file "
            "with a program that knows its orientation."
        )
    expected = "'n+1' or 'ni1'" if size == _NIFTI1_BYTES else "'n+2' or 'ni2'"
    return DataError(
        f"{path}: not a readable NIfTI file: magic: found {magic.decode('latin-1')!r}, expected {expected}. Copy the file "
        "again or convert it."
    )


def _naming(path: Path, packed: bool) -> list[str]:
    """Return a note if a name promises gzip data and the content is not, or the other way round."""
    named = path.name.lower().endswith(".gz")
    if packed == named or path.suffix.lower() in (".hdr", ".img"):
        return []
    found, right = ("gzip data", f"{path.name}.gz") if packed else ("no gzip data", path.name[: -len(".gz")])
    return [f"content: found {found}; it is read as such. Rename it to {right} for other programs."]


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise DataError(
            f"{path}: not a readable NIfTI file: dim[0]: found {axes} axes, expected 1 to 7. Copy the file again or convert it."
        )
    shape = tuple(int(size) for size in header["dim"][1 : axes + 1])
    if not 2 <= axes <= 5 or min(shape) < 1:
        raise DataError(f"{path}: dim: found {shape}, expected 2 to 5 axes, none empty. Check the file.")
    return shape


def _dtype(header: Any, path: Path) -> np.dtype[Any]:
    code = int(header["datatype"])
    dtype = np.dtype(data_type_codes.dtype[code]) if code in data_type_codes.dtype else np.dtype("V0")
    if dtype.kind == "c":
        raise DataError(
            f"{path}: datatype: found {dtype}, expected real numbers. Save the magnitude of the complex numbers."
        )
    if dtype.itemsize == 0:
        known = ", ".join(f"{c} ({data_type_codes.label[c]})" for c in _READABLE_TYPES)
        raise DataError(
            f"{path}: not a readable NIfTI file: datatype: found {code}, expected one of {known}. Copy the file again or "
            "convert it."
        )
    return dtype.newbyteorder(header.endianness)


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means by the standard that voxels are not scaled."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    for name, value in (("scl_slope", slope), ("scl_inter", inter)):
        if not math.isfinite(value):
            raise DataError(
                f"{path}: {name}: found {value}, expected a finite number, because all voxels are scaled by it. Convert the "
                "file again from its source."
            )
    return slope, inter


def _offset(header: Any, path: Path, single: bool) -> int:
    lowest = 544 if isinstance(header, nib.Nifti2Header) else 352
    lowest = lowest if single else 0
    found = float(header["vox_offset"])
    if single and found == 0:  # written by some programs for the usual place
        return lowest
    if not lowest <= found < 2**62:  # NaN, too
        raise DataError(
            f"{path}: vox_offset: found {found:g}, expected at least {lowest}, the first byte of the voxels. Copy the file "
            "again or convert it."
        )
    return int(found)


def _broken_extensions(file: Path, packed: bool, header: Any, offset: int) -> list[str]:
    """Return a note if the extensions do not fit between header and voxels; they are never used."""
    start = _NIFTI2_BYTES if isinstance(header, nib.Nifti2Header) else _NIFTI1_BYTES
    try:
        with opened(file, packed=packed) as stream:
            if skip(stream, start) < start:
                return []
            flag = stream.read(_EXTENSION_FLAG_BYTES)
            if not flag[:1].strip(b"\0"):
                return []
            return _walked(stream, start + _EXTENSION_FLAG_BYTES, offset, header.endianness)
    except (OSError, EOFError):  # the voxels, which follow, are then reported
        return []


def _walked(stream: Stream, place: int, end: int, order: str) -> list[str]:
    """Walk through the chain of extensions up to the first voxel; return a note if it breaks."""
    while place < end:
        lead = stream.read(8)
        size = int.from_bytes(lead[:4], "little" if order == "<" else "big", signed=True)
        if size == 0:  # padding
            return []
        if len(lead) < 8 or not 8 <= size <= min(end - place, _LONGEST_EXTENSION):
            return [
                f"header extension: found a size of {size} bytes, expected at most the {end - place} before the voxels; it is "
                "ignored."
            ]
        place += size
        skip(stream, size - 8)
    return []
