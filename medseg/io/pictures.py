"""Pictures, where SimpleITK alone does not do: palettes, and grey with transparency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PALETTE_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def palette_indices(path: Path) -> NDArray[np.uint8] | None:
    """Indices `(1, X, Y, 1)` of a readable picture with a palette, None for any other picture.

    Drawing programs store label maps so: index 2 is label 2, whatever colour it is shown in.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode != "P" or getattr(picture, "n_frames", 1) != 1:
                return None
            rows: NDArray[Any] = np.asarray(picture)
    except (OSError, UnidentifiedImageError):  # a kind of picture that only the reader of images knows
        return None
    return np.ascontiguousarray(rows.T[None, :, :, None])


def grey_with_alpha(path: Path) -> NDArray[np.uint8] | None:
    """Grey and alpha `(Y, X, 2)` of a PNG that holds both, which SimpleITK cannot read; None for any other file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture) if picture.mode == "LA" else None
    except (OSError, UnidentifiedImageError, SyntaxError):
        return None
