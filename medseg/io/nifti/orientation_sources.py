"""The descriptions of its geometry that a NIfTI header holds; imports no library."""

from __future__ import annotations

from typing import Literal, get_args

OrientationFrom = Literal["sform", "qform", "pixdim"]
"""A description that a user chooses where the header leaves the geometry open or contradicts itself."""

ORIENTATION_SOURCES: tuple[OrientationFrom, ...] = get_args(OrientationFrom)
