"""Pictures, where SimpleITK alone does not do: palettes, and grey with transparency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError

PALETTE_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_PNG, _PALETTE, _GREY_WITH_ALPHA = b"\x89PNG\r\n\x1a\n", 3, 4


def palette_indices(path: Path) -> NDArray[np.uint8] | None:
    """Indices `(1, X, Y, 1)` of a readable picture with a palette, None for any other picture.

    Drawing programs store label maps so: index 2 is label 2, whatever colour it is shown in.

    Raises:
        DataError: it cannot be told, because Pillow refuses the picture, as it does huge ones.
    """
    if _png_colours(path) not in (None, _PALETTE):
        return None
    rows = _opened(path, "P")
    return None if rows is None else np.ascontiguousarray(rows.T[None, :, :, None])


def grey_with_alpha(path: Path) -> NDArray[np.uint8] | None:
    """Grey and alpha `(Y, X, 2)` of a PNG that holds both, which SimpleITK cannot read; None for any other file.

    Raises:
        DataError: such a PNG, but damaged or too large.
    """
    return _opened(path, "LA") if _png_colours(path) == _GREY_WITH_ALPHA else None


def _png_colours(path: Path) -> int | None:
    """The kind of colours that a PNG says in its first chunk; None of another file. No other chunk is looked at."""
    try:
        with path.open("rb") as stream:
            head = stream.read(26)
    except OSError:
        return None
    return head[25] if len(head) == 26 and head.startswith(_PNG) and head[12:16] == b"IHDR" else None


def _opened(path: Path, mode: str) -> NDArray[np.uint8] | None:
    """Rows of a picture that Pillow knows to be of this mode, one alone in its file; else None."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode != mode or getattr(picture, "n_frames", 1) != 1:
                return None
            rows: NDArray[Any] = np.asarray(picture)
            return rows
    except UnidentifiedImageError:  # a kind of picture that only the reader of images knows
        return None
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and mode == "P":
            return None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not readable ({reason}). Copy the file again or convert it.") from None
