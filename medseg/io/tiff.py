"""TIFF files: single images, stacks of pages, and the multi-dimensional files of ImageJ and OME.

Pages and the axis Z are slices; samples and the axes C and T are channels. A voxel size is read from a JSON file next to the
image (nnU-Net's ``{"spacing": [z, y, x]}``), else from the metadata of OME or ImageJ. The resolution tags of other programs
describe prints, not patients, so such an image is counted in pixels.
"""

from __future__ import annotations

import contextlib
import html
import logging
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, warn_once
from medseg.io.file_content import head_of, recognised_content, require_readable
from medseg.runtime.formatting import error_reason
from medseg.storage.json_files import read_json
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    import tifffile

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY_INVERTED, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ALPHA = (1, 2)
_SLICES, _CHANNELS = "ZIQ", "TCS"
_CHANNEL_NUMBER = re.compile(r"(.+)_\d{4}")
_SAME_SIZE = 0.01  # fraction by which two statements of one voxel size may differ
_LARGEST_RATIO = 4000  # of a compressed file; only bilevel images, which are small, are packed more tightly
_ALWAYS_READ = 1 << 30  # bytes
_UNITS = (  # in mm, with the names that OME and ImageJ use
    (1000.0, ("m", "meter", "metre")),
    (10.0, ("cm", "centimeter", "centimetre")),
    (1.0, ("mm", "millimeter", "millimetre")),
    (1e-3, ("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", r"\u00b5m")),
    (1e-6, ("nm", "nanometer", "nanometre")),
    (1e-7, ("Å", "å", "angstrom")),
    (25.4, ("inch", "in", '"')),
)
_MM = {name.casefold(): size for size, names in _UNITS for name in names}
_Spacing = tuple[float, float, float]


def read_tiff(path: Path, *, as_stored: bool = False) -> Volume:
    """Read a TIFF file.

    Orientation tags are applied, grey values for which 0 is white are inverted, and an alpha channel that is opaque
    everywhere is left out.

    Args:
        path: The file.
        as_stored: Whether values are returned as stored, as label maps need it: the indices of a palette instead of its colours,
            and no inversion.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image`` in the stored type; half and double precision become float32, bits become
        uint8. Without a voxel size, its grid is in pixels.

    Raises:
        DataError: The file is missing, damaged, or holds several images, an axis that is no channel, or colours that are
            neither grey, RGB nor a palette.
    """
    require_readable(path, "a TIFF image")
    head = head_of(path)
    if head[:4] not in _MAGIC:
        content, remedy = recognised_content(head)
        raise DataError(f"{path}: not readable: found {content}, expected a TIFF image. {remedy}.")
    with _opened(path) as file:
        _check_chain(file, path)
        series = _only_series(file, path)
        page = series.keyframe
        _check(series, path)
        array = _channels_first(series.asarray(maxworkers=1), str(series.axes), path)
        spacing = _spacing(file, path, array.shape[1])
        array, turned = _upright(_values(array, page, as_stored), int(page.tags.valueof(274, 1) or 1))
    if turned and spacing is not None:
        spacing = (spacing[1], spacing[0], spacing[2])
    data = np.ascontiguousarray(array.transpose(0, 3, 2, 1))
    x, y, z = spacing or (1.0, 1.0, 1.0)
    return Volume(data, Grid(data.shape[1:], np.diag([-x, -y, z, 1.0]), in_pixels=spacing is None))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a file; what its reader raises or reports as an error becomes a `DataError` with the name of the file."""
    import tifffile

    try:
        with _errors_raised(), tifffile.TiffFile(path) as file:
            yield file
    except DataError:
        raise
    except MemoryError:
        raise DataError(
            f"{path}: not enough memory for its pixels. Free memory, or crop the image."
        ) from None
    except Exception as error:  # decoders raise errors of their own, which have no common class
        reason = error_reason(error)
        raise DataError(f"{path}: not readable ({reason}). Copy the file again or convert it.") from None


@contextlib.contextmanager
def _errors_raised() -> Iterator[None]:
    """Raise what tifffile only reports as an error; its lesser reports are silenced."""
    reports: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                reports.append(record.getMessage())

    logger, handler = logging.getLogger("tifffile"), Collect()
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
        if reports:
            raise ValueError(reports[0])
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def _check_chain(file: tifffile.TiffFile, path: Path) -> None:
    """Raise if a page names an earlier one as the next: tifffile would read such a circle again and again."""
    layout, handle, size = file.tiff, file.filehandle, path.stat().st_size
    known: set[int] = set()
    offset = file.pages.first.offset
    while offset and offset + layout.tagnosize <= size:
        if offset in known:
            raise DataError(
                f"{path}: page {len(known)}: found an earlier page as the next one, expected a later one or none. Copy the file "
                "again."
            )
        known.add(offset)
        handle.seek(offset)
        (tags,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
        handle.seek(offset + layout.tagnosize + tags * layout.tagsize)
        stored = handle.read(layout.offsetsize)
        offset = struct.unpack(layout.offsetformat, stored)[0] if len(stored) == layout.offsetsize else 0


def _only_series(file: tifffile.TiffFile, path: Path) -> Any:
    """Return the only image of a file; smaller copies of it are left out."""
    images = [one for one in file.series if one.shape and 0 not in one.shape]
    full = [one for one in images if not one.keyframe.is_reduced] or images
    if file.is_svs or file.is_ndpi or file.is_scn:
        full = full[:1]
    if len(full) != 1:
        found = " and ".join("x".join(map(str, one.shape)) for one in full[:3]) or "no image"
        raise DataError(
            f"{path}: found {len(full)} images of {found} pixels, expected one image or one stack. Split the file."
        )
    return full[0]


def _check(series: Any, path: Path) -> None:
    """Raise for colours and types that are not read, for missing parts, and for sizes that a file cannot hold."""
    page = series.keyframe
    if page.photometric not in (_GREY_INVERTED, _GREY, _RGB, _PALETTE, _YCBCR):
        raise DataError(
            f"{path}: photometric: found {getattr(page.photometric, 'name', page.photometric)}, expected grey, RGB or a palette. "
            "Convert its colours."
        )
    if series.dtype is None or series.dtype.kind not in "buif":
        raise DataError(f"{path}: found voxels of {series.dtype}, expected real numbers. Convert them.")
    size = path.stat().st_size
    needed = math.prod(series.shape) * series.dtype.itemsize
    if needed > max(_ALWAYS_READ, size * _LARGEST_RATIO):
        raise DataError(
            f"{path}: found {size} bytes, expected more for the shape {series.shape}. Copy the file again."
        )
    for number, one in enumerate(series.pages, 1):
        if one is None:
            raise DataError(
                f"{path}: page {number} is missing, expected {len(series.pages)} pages. Copy all files of the image."
            )
        ends = [start + count for start, count in zip(one.dataoffsets, one.databytecounts, strict=False)]
        expected = math.prod(page.chunked)
        if (
            len(ends) < expected
            or 0 in one.databytecounts[:expected]
            or (one.parent is page.parent and max(ends) > size)
        ):
            raise DataError(
                f"{path}: page {number}: found {len(ends)} parts that end at byte {max(ends, default=0)} of {size}, expected "
                f"{expected} complete ones. Copy the file again."
            )


def _channels_first(array: NDArray[Any], axes: str, path: Path) -> NDArray[Any]:
    """Return an array `(C, Z, Y, X)`."""
    kept = [(axis, size) for axis, size in zip(axes, array.shape, strict=True) if size > 1 or axis in "YX"]
    letters = "".join(axis for axis, _ in kept)
    slices = [axis for axis in letters if axis in _SLICES]
    unknown = [axis for axis in letters if axis not in f"{_SLICES}{_CHANNELS}YX"]
    if unknown or len(slices) > 1 or ("T" in letters and not slices) or len(set(letters)) < len(letters):
        found = ", ".join(f"{size} along {axis}" for axis, size in kept)
        raise DataError(
            f"{path}: axes: found {found}, expected Y, X, at most one axis of slices (Z), and channels (C, or T of a stack). "
            "Save the axes with their names, or split the file."
        )
    array = array.reshape([size for _, size in kept])
    order = [letters.index(axis) for axis in (*_CHANNELS, *slices, "Y", "X") if axis in letters]
    rows, columns = (array.shape[letters.index(axis)] for axis in "YX")
    depth = array.shape[letters.index(slices[0])] if slices else 1
    return array.transpose(order).reshape(-1, depth, rows, columns)


def _values(array: NDArray[Any], page: Any, as_stored: bool) -> NDArray[Any]:
    """Return the values `(C, Z, Y, X)` that a viewer would show, or those that are stored."""
    if page.photometric == _PALETTE and not as_stored and page.colormap is not None:
        colours = page.colormap
        array = np.stack([(table[array[0]] >> 8).astype(np.uint8) for table in colours])
    if page.photometric == _GREY_INVERTED and not as_stored and array.dtype.kind in "bu":
        top = 1 if array.dtype.kind == "b" else (1 << page.bitspersample) - 1
        array = (top - array.astype(np.int64)).astype(np.uint8 if array.dtype.kind == "b" else array.dtype)
    if page.extrasamples and page.extrasamples[-1] in _ALPHA and array.dtype.kind == "u" and len(array) > 1:
        array = array[:-1] if (array[-1] == np.iinfo(array.dtype).max).all() else array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _upright(array: NDArray[Any], orientation: int) -> tuple[NDArray[Any], bool]:
    """Apply an orientation tag to `(C, Z, Y, X)`; return whether rows and columns were exchanged."""
    turned = 5 <= orientation <= 8
    if turned:
        array = array.swapaxes(2, 3)
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :]
    return array, turned


def _spacing(file: tifffile.TiffFile, path: Path, depth: int) -> _Spacing | None:
    """Return the voxel size along X, Y and Z in mm; None if the file does not state one."""
    sidecar = _json_spacing(path, depth)
    found, field = (None, "")
    if file.is_ome:
        found, field = _ome_spacing(file.ome_metadata or ""), "PhysicalSize"
    elif file.is_imagej:
        found, field = _imagej_spacing(file, path), "spacing"
    if sidecar is not None:
        _warn_of_other_spacing(path, sidecar, found or (), field)
        return sidecar
    if found is None or None in found[:2]:
        return None
    x, y, z = found
    if z is None and depth > 1:
        warn_once(
            f"{path}: {field}: found no distance between its {depth} slices, so the pixel size of {x:g} mm is used. Add a JSON "
            f'file {path.stem}.json with {{"spacing": [z, y, x]}} in mm.'
        )
    assert x is not None
    assert y is not None
    z = x if z is None else z
    if not all(math.isfinite(value) and value > 0 for value in (x, y, z)):
        raise DataError(
            f"{path}: {field}: found {x:g}x{y:g}x{z:g} mm, expected sizes above 0. Correct the metadata."
        )
    return (x, y, z)


def _warn_of_other_spacing(path: Path, used: _Spacing, found: tuple[float | None, ...], field: str) -> None:
    """Warn if the metadata of a file state another voxel size than the JSON file next to it."""
    pairs = [(size, stated) for size, stated in zip(used, found, strict=False) if stated is not None]
    if len(pairs) > 1 and any(abs(size - stated) > _SAME_SIZE * size for size, stated in pairs):
        sizes = ["x".join(f"{value:g}" for value in column) for column in zip(*pairs, strict=True)]
        warn_once(
            f"{path}: {field}: found {sizes[1]} mm, expected {sizes[0]} mm as in {spacing_file(path)}, which is used. Correct one of them."
        )


def spacing_file(path: Path) -> Path | None:
    """Return the existing JSON file next to an image that may hold its spacing.

    Args:
        path: The image.

    Returns:
        ``ID.json`` for ``ID.tif`` and for ``ID_0000.tif``; None if there is none.
    """
    stem = re.sub(r"\.ome$", "", path.stem, flags=re.IGNORECASE)
    numbered = _CHANNEL_NUMBER.fullmatch(stem)
    names = [path.stem, stem, *([numbered[1]] if numbered else [])]
    return next((one for name in names if (one := path.with_name(f"{name}.json")).is_file()), None)


def _json_spacing(path: Path, depth: int) -> _Spacing | None:
    """Return the spacing in the JSON file next to an image: ``ID.json`` for ``ID.tif`` and for ``ID_0000.tif``."""
    sidecar = spacing_file(path)
    values = read_json(sidecar) if sidecar is not None else None
    if not isinstance(values, dict) or "spacing" not in values:
        return None
    found = values["spacing"]
    numbers = (
        [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if isinstance(found, list)
        else []
    )
    if (
        len(numbers) not in ((3,) if depth > 1 else (2, 3))
        or len(numbers) != len(found)
        or not all(0 < value < math.inf for value in numbers)
    ):
        wanted = "three sizes (z, y, x)" if depth > 1 else "two sizes (y, x) or three (z, y, x)"
        raise DataError(
            f"{sidecar}: spacing: found {found!r:.80}, expected {wanted} above 0 in mm. Correct it."
        )
    x, y, z = (*reversed([float(value) for value in numbers]), 1.0)[:3]
    return (x, y, z)


def _ome_spacing(text: str) -> tuple[float | None, ...] | None:
    """Return PhysicalSizeX, -Y and -Z of the first image in mm; the default unit of OME is the micron."""
    tag = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    if tag is None:
        return None

    def size(axis: str) -> float | None:
        value = re.search(rf"""\bPhysicalSize{axis}\s*=\s*["']([^"']*)["']""", tag[0])
        unit = re.search(rf"""\bPhysicalSize{axis}Unit\s*=\s*["']([^"']*)["']""", tag[0])
        return _in_mm(value[1] if value else None, html.unescape(unit[1]) if unit else "µm")

    return tuple(size(axis) for axis in "XYZ")


def _imagej_spacing(file: tifffile.TiffFile, path: Path) -> tuple[float | None, ...] | None:
    """Return the voxel size that ImageJ stores: pixels per unit in the resolution tags, and the spacing of slices."""
    metadata = file.imagej_metadata or {}
    unit = str(metadata.get("unit", ""))
    tags = file.pages.first.tags

    def size(code: int) -> float | None:
        numerator, denominator = tags.valueof(code, (0, 1)) or (0, 1)
        return _in_mm(denominator / numerator, unit) if numerator else None

    return size(282), size(283), _in_mm(metadata.get("spacing"), unit)


def _in_mm(value: Any, unit: str) -> float | None:
    """Return a length in mm; None without a value, or for a unit that is not a length, such as ``pixel``."""
    factor = _MM.get(unit.strip().casefold())
    try:
        return None if value is None or factor is None else abs(float(value)) * factor
    except (TypeError, ValueError):
        return None
