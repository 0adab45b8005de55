"""Pixels of the slices of a series, decoded and rescaled.

Files of one slice are decoded by GDCM (in SimpleITK), which knows the usual compressions. Frames of multi-frame files, and
compressions that GDCM lacks, are decoded by pydicom and its plugins, one frame at a time. A frame in JPEG, JPEG-LS or JPEG 2000 is written to a
temporary file of one slice for GDCM, because pydicom needs further packages for these.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError
from medseg.io.dicom.dicom_header import DicomHeader, replace_before_pixels
from medseg.io.dicom.placed_slices import PROJECTIONS, Slice
from medseg.io.dicom.pydicom_files import read_dataset, require_pydicom, without_content
from medseg.io.dicom.series_files import UNCOMPRESSED
from medseg.io.itk.sitk import read_dicom_pixels

_MODALITY, _PHOTOMETRIC = 0x00080060, 0x00280004
_BITS, _SIGNED = 0x00280101, 0x00280103
_SAMPLES, _ALLOCATED = 0x00280002, 0x00280100
_RLE = "1.2.840.10008.1.2.5"
_FRAMES_BY_GDCM = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))
_BY_GDCM = (*UNCOMPRESSED, *_FRAMES_BY_GDCM, _RLE)
_PLUGINS = (
    ("1.2.840.10008.1.2.4.20", "pylibjpeg pylibjpeg-openjpeg"),  # high-throughput JPEG 2000
    ("1.2.840.10008.1.2.4.9", "pylibjpeg pylibjpeg-openjpeg"),
    ("1.2.840.10008.1.2.4.8", "pyjpegls"),
    ("1.2.840.10008.1.2.4.", "pylibjpeg pylibjpeg-libjpeg"),
)
_OF_A_SLICE = (
    *("SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)


def read_pixels(slices: Sequence[Slice], where: Path) -> NDArray[Any]:
    """Read the pixels of checked slices, rescaled by the slope and intercept of each.

    Args:
        slices: The slices, in the order of the stack.
        where: The folder or file, for messages.

    Returns:
        Array `(C, X, Y, Z)`: whole numbers if slopes and intercepts are whole and equal, else float32.

    Raises:
        DataError: The decoder refuses a file.
        ConfigError: The decoder of a compression is not installed.
    """
    alike = len({one.rescale for one in slices}) == 1
    if all(one.frame is None and _is_read_by_gdcm(one.header) for one in slices):
        with _uninverted([one.header for one in slices]) as files:
            return read_dicom_pixels(files, where, as_float=not alike)
    planes = list(_planes(slices, where))
    stored = np.stack([_upright(one, plane) for one, plane in zip(slices, planes, strict=True)], axis=-1)
    if alike:
        return _rescaled(stored, slices[0])
    slopes, intercepts = np.array([one.rescale for one in slices], dtype=np.float64).T
    return np.asarray(stored * slopes + intercepts, dtype=np.float32)


def _is_read_by_gdcm(header: DicomHeader) -> bool:
    """Return whether GDCM decodes a file of one slice; colours of 16 or 32 bits in RLE would be wrong without an error."""
    deep_colours = header.number(_SAMPLES, 1) > 1 and header.number(_ALLOCATED, 16) > 8
    return header.syntax in _BY_GDCM and not (header.syntax == _RLE and deep_colours)


def _planes(slices: Sequence[Slice], where: Path) -> Iterator[NDArray[Any]]:
    """Yield the stored pixels of each slice, `(rows, columns)` or `(rows, columns, colours)`."""
    frames: dict[Path, list[Slice]] = {}
    for one in slices:
        frames.setdefault(one.header.path, []).append(one)
    decoded: dict[tuple[Path, int | None], NDArray[Any]] = {}
    for path, wanted in frames.items():
        header = wanted[0].header
        source = _decoded_by_gdcm if header.syntax in _FRAMES_BY_GDCM else _decoded_by_pydicom
        for one, plane in zip(wanted, source(path, header, [one.frame or 0 for one in wanted]), strict=True):
            decoded[path, one.frame] = plane
    for one in slices:
        plane = decoded.pop((one.header.path, one.frame))
        yield plane


def _decoded_by_pydicom(path: Path, header: DicomHeader, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
    require_pydicom(path, "compressed or multi-frame files")
    from pydicom.pixels import iter_pixels

    _require_decoder(path, header.syntax)
    with without_content(path, "Export the file again"):
        for plane in iter_pixels(path, indices=list(frames), raw=header.text(_PHOTOMETRIC)[:3] != "YBR"):
            if plane.dtype == bool:
                plane = plane.astype(np.uint8)
            yield plane


def _require_decoder(path: Path, syntax: str) -> None:
    """Raise unless pydicom has a decoder for a transfer syntax."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    try:
        missing = not get_decoder(uid).is_available
    except NotImplementedError:
        raise DataError(
            f"{path}: TransferSyntaxUID: found {uid.name} ({syntax}), expected an uncompressed one, JPEG, JPEG-LS, JPEG 2000 or RLE. Decompress the "
            "series, for example with gdcmconv --raw."
        ) from None
    if missing:
        packages = next((names for start, names in _PLUGINS if syntax.startswith(start)), "pylibjpeg")
        raise ConfigError(
            f"{path}: TransferSyntaxUID: found {uid.name} ({syntax}), expected its decoder to be installed. Install it: pip install {packages}."
        )


def _decoded_by_gdcm(path: Path, header: DicomHeader, frames: Sequence[int]) -> list[NDArray[Any]]:
    """Return frames decoded from temporary files of one slice each."""
    require_pydicom(path, "compressed multi-frame files")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate, generate_frames

    with tempfile.TemporaryDirectory() as folder, without_content(path, "Export the file again"):
        source = read_dataset(path)
        count = int(source.get("NumberOfFrames") or 1)
        fragments = list(
            generate_frames(
                source.PixelData,
                number_of_frames=count,
                extended_offsets=_extended_offsets(source),
            )
        )
        files = []
        for number, frame in enumerate(frames):
            one = Dataset()
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = header.syntax
            one.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
            one.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
            for name in _OF_A_SLICE:
                if name in source:
                    setattr(one, name, source.get(name))
            one.PhotometricInterpretation = str(source.PhotometricInterpretation).replace(
                "MONOCHROME1", "MONOCHROME2"
            )
            one.PixelData = encapsulate([fragments[frame]])
            one["PixelData"].is_undefined_length = True
            files.append(Path(folder, f"{number:06d}.dcm"))
            one.save_as(files[-1], enforce_file_format=True)
        decoded = read_dicom_pixels(files, path, as_float=False)
    return [np.moveaxis(decoded[..., k], (0, 1, 2), (2, 1, 0)) for k in range(len(files))]


def _extended_offsets(source: Any) -> Any:
    offsets, lengths = source.get("ExtendedOffsetTable"), source.get("ExtendedOffsetTableLengths")
    return None if offsets is None or lengths is None else (offsets, lengths)


def _upright(one: Slice, plane: NDArray[Any]) -> NDArray[Any]:
    """Return stored pixels as `(C, X, Y)`, inverted if they are those of a projection in which 0 is white."""
    plane = plane if plane.ndim == 3 else plane[..., None]
    header = one.header
    if header.text(_PHOTOMETRIC) == "MONOCHROME1" and header.text(_MODALITY) in PROJECTIONS:
        top = -1 if header.number(_SIGNED) else (1 << header.number(_BITS, 16)) - 1
        plane = (top - plane.astype(np.int64)).astype(plane.dtype)
    return plane.T


def _rescaled(stored: NDArray[Any], one: Slice) -> NDArray[Any]:
    """Return stored values with one slope and intercept, in the smallest usual type that holds all values of their bits."""
    slope, intercept = one.rescale
    if stored.dtype.kind == "f":
        return np.asarray(stored * slope + intercept, dtype=np.float32)
    if (slope, intercept) == (1, 0):
        return np.ascontiguousarray(stored)
    if not (slope.is_integer() and intercept.is_integer()):
        return np.asarray(stored * slope + intercept, dtype=np.float32)
    bits = one.header.number(_BITS, 8 * stored.dtype.itemsize)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
    ends = (low * slope + intercept, high * slope + intercept)
    for kind in (np.int16, np.int32):
        info = np.iinfo(kind)
        if info.min <= min(ends) and max(ends) <= info.max:
            return np.asarray(stored.astype(np.int64) * int(slope) + int(intercept), dtype=kind)
    return np.asarray(stored * slope + intercept, dtype=np.float32)


@contextlib.contextmanager
def _uninverted(headers: Sequence[DicomHeader]) -> Iterator[list[Path]]:
    """Yield the files to decode; those that the decoder would invert are copied with another mark.

    MONOCHROME1 says that the lowest value is shown white. That concerns the display of a CT, PET or MR, not its values. Only
    values of projections, such as X-rays, are inverted, so that dense tissue is bright in all of them.
    """
    marked = [
        one
        for one in headers
        if one.text(_PHOTOMETRIC) == "MONOCHROME1" and one.text(_MODALITY) not in PROJECTIONS
    ]
    if not marked:
        yield [one.path for one in headers]
        return
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, one in enumerate(headers):
            copy = Path(folder, f"{number:06d}.dcm")
            copy.write_bytes(replace_before_pixels(one, b"MONOCHROME1", b"MONOCHROME2"))
            files.append(copy)
        yield files
