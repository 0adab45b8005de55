"""Natural images that SimpleITK cannot read correctly: palettes, grey bitmaps, and grey with transparency."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.runtime.formatting import error_reason
from medseg.runtime.out_of_memory import is_out_of_memory
from medseg.storage.archives import DEFLATE_LIMIT

PALETTE_SUFFIXES = (".png", ".bmp")
_BMP_LIMIT = 128  # pixels per byte of a bitmap, which run-length coding reaches
_PNG, _GREY, _PALETTE, _GREY_WITH_ALPHA = b"\x89PNG\r\n\x1a\n", 0, 3, 4


def palette_indices(path: Path) -> NDArray[np.uint8] | None:
    """Return the palette indices of an image with a palette.

    Drawing programs store label maps with a palette: index 2 is label 2, whatever its colour.

    Args:
        path: The file.

    Returns:
        Indices `(1, X, Y, 1)`; None for any other image.

    Raises:
        DataError: Pillow refuses the image, for example because it is too large.
    """
    if _png_colours(path) not in (None, _PALETTE):
        return None
    rows = _opened(path, "P")
    return None if rows is None else np.ascontiguousarray(rows.T[None, :, :, None])


def grey_with_alpha(path: Path) -> NDArray[np.uint8 | np.uint16] | None:
    """Return the voxels of a PNG with grey and alpha, or with a grey that is transparent, which SimpleITK cannot read.

    The checksums of all chunks are compared for any PNG: the decoders skip damaged chunks that they do not need.

    Args:
        path: The file.

    Returns:
        Grey and alpha `(Y, X, 2)`; None for any other file.

    Raises:
        DataError: The file is a PNG, but damaged or too large.
    """
    colours = _png_colours(path)
    if colours is None:
        return None
    transparent = _checked_transparency(path)
    with path.open("rb") as stream:
        head = stream.read(26)
    if colours == _GREY and transparent is not None and head[24] == 8:
        grey = _opened(path, "L")
        alpha = np.where(grey == int.from_bytes(transparent, "big"), np.uint8(0), np.uint8(255))
        return None if grey is None else np.stack((grey, alpha), -1)
    if colours != _GREY_WITH_ALPHA:
        return None
    return _sixteen_bits(path, head) if head[24] == 16 else _opened(path, "LA")


def grey_bitmap(path: Path) -> NDArray[np.uint8] | None:
    """Return the voxels of a BMP with a palette of greys, which SimpleITK reads as colours, or not at all if it has one bit.

    Args:
        path: The file.

    Returns:
        Grey values `(Y, X, 1)`, 0 and 255 for one bit, as from a PNG; None for any other file.

    Raises:
        DataError: The file is such an image, but damaged or too large.
    """
    rows = _opened(path, "L")
    if rows is None:
        rows = _opened(path, "1")
    return (
        None
        if rows is None
        else rows.astype(np.uint8)[..., None] * np.uint8(255 if rows.dtype == bool else 1)
    )


def _sixteen_bits(path: Path, head: bytes) -> NDArray[np.uint16]:
    """Return the voxels of a PNG with 16 bits of grey and of alpha, which Pillow reduces to 8 bits."""
    import imagecodecs

    width, height = (int.from_bytes(head[place : place + 4], "big") for place in (16, 20))
    content = path.read_bytes()
    if width * height * 4 > len(content) * DEFLATE_LIMIT:
        raise DataError(
            f"{path}: found {len(content)} bytes, expected at least {width * height * 4 // DEFLATE_LIMIT} for {width}x{height} pixels. "
            "Copy the file again."
        )
    try:
        rows: NDArray[np.uint16] = imagecodecs.png_decode(content)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"{path}: not readable ({error}). Copy the file again or convert it.") from None
    return rows


def _checked_transparency(path: Path) -> bytes | None:
    """Compare the checksum of every chunk of a PNG, and return the content of its chunk ``tRNS``."""
    found = None
    with path.open("rb") as stream:
        stream.seek(len(_PNG))
        while len(lead := stream.read(8)) == 8:
            place, kind = stream.tell() - 8, lead[4:]
            content = stream.read(int.from_bytes(lead[:4], "big"))
            stored = stream.read(4)
            if stored != zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big"):
                raise DataError(
                    f"{path}: not readable (the checksum of chunk {kind.decode('latin-1')!r} at byte {place} is wrong). Copy the file again."
                )
            if kind == b"tRNS":
                found = content
            if kind == b"IEND":
                break
    return found


def _png_colours(path: Path) -> int | None:
    """Return the colour type that the first chunk of a PNG states; None for another file. Other chunks are not read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(26)
    except OSError:
        return None
    return head[25] if len(head) == 26 and head.startswith(_PNG) and head[12:16] == b"IHDR" else None


def _opened(path: Path, mode: str) -> NDArray[np.uint8] | None:
    """Return the rows of a single image of this Pillow mode; None for any other image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.format == "BMP" and image.width * image.height > _BMP_LIMIT * path.stat().st_size:
                raise ValueError(f"{path.stat().st_size} bytes for {image.width}x{image.height} pixels")
            if image.mode != mode or getattr(image, "n_frames", 1) != 1:
                return None
            rows: NDArray[Any] = np.asarray(image)
            return rows
    except UnidentifiedImageError:  # a format that only SimpleITK may know
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and mode == "P":
            return None
        reason = error_reason(error)
        raise DataError(f"{path}: not readable ({reason}). Copy the file again or convert it.") from None
