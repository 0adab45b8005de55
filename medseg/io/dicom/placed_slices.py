"""The slices of DICOM files in space: one per file, or one per frame of a multi-frame file."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, warn_once
from medseg.io.dicom.dicom_header import PER_FRAME, DicomHeader
from medseg.io.dicom.series_files import UNCOMPRESSED
from medseg.runtime.formatting import pluralise

_GEOMETRY_TAGS = {
    0x00200037: "ImageOrientationPatient",
    0x00200032: "ImagePositionPatient",
    0x00280030: "PixelSpacing",
}
_MODALITY, _IMAGE_TYPE, _FRAMES = 0x00080060, 0x00080008, 0x00280008
_FILMS = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC
PROJECTIONS = (
    *("CR", "DX", "DR", "MG", "US", "XA", "RF", "OT", "SC", "ES", "GM", "SM", "OP", "XC", "IO", "PX"),
)
"""Modalities whose images are projections or photographs, not slices."""


@dataclass(frozen=True)
class Slice:
    """The geometry of one slice in LPS coordinates.

    Attributes:
        header: Description of its file.
        orientation: Directions along a row and along a column, `(2, 3)`.
        position: Centre of the first pixel in mm, `(3,)`.
        spacing: Distance (mm) between rows and between columns.
        thickness: Distance (mm) to the next slice according to the file; 0 if it is not stated.
        rescale: Slope and intercept.
        frame: Index of the frame from 0 on; None for a file of one slice.
    """

    header: DicomHeader
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    rescale: tuple[float, float]
    frame: int | None = None

    @property
    def name(self) -> str:
        """The file name, with the number of the frame (from 1 on, as DICOM counts) if there are several."""
        return (
            self.header.path.name
            if self.frame is None
            else f"frame {self.frame + 1} of {self.header.path.name}"
        )


def is_multi_frame(header: DicomHeader) -> bool:
    """Return whether a file states several frames, or the geometry of each frame."""
    return header.number(_FRAMES, 1) > 1 or PER_FRAME in header.values


def has_position(header: DicomHeader) -> bool:
    """Return whether a file states where in the patient its image is, or is a file of several frames, which may."""
    return is_multi_frame(header) or all(header.text(tag) for tag in _GEOMETRY_TAGS)


def slice_of(header: DicomHeader) -> Slice:
    """Return the geometry of a file of one slice.

    Args:
        header: Description of the file.

    Returns:
        Its slice.

    Raises:
        DataError: It is a mosaic or a film, or states no position.
    """
    require_still_image(header)
    tag = header.text
    try:
        orientation = np.array(tag(0x00200037).split("\\"), dtype=np.float64).reshape(2, 3)
        position = np.array(tag(0x00200032).split("\\"), dtype=np.float64).reshape(3)
        rows, columns = (float(value) for value in tag(0x00280030).split("\\"))
        thickness = float(tag(0x00180088) or tag(0x00180050) or 0)
        rescale = (float(tag(0x00281053) or 1), float(tag(0x00281052) or 0))
    except ValueError:
        raise _no_geometry(header) from None
    return Slice(header, orientation, position, (rows, columns), thickness, rescale)


def require_still_image(header: DicomHeader) -> None:
    """Raise if a file is a mosaic of slices, or a film.

    Args:
        header: Description of the file.

    Raises:
        DataError: It is.
    """
    if "MOSAIC" in header.text(_IMAGE_TYPE).upper().split("\\"):
        raise DataError(
            f"{header.path}: found a mosaic of slices, expected one slice per file or frame. Convert it with dcm2niix."
        )
    if header.syntax.startswith(_FILMS):
        raise DataError(
            f"{header.path}: TransferSyntaxUID: found {header.syntax!r}, a film (MPEG), expected images. Convert its frames to images."
        )


def _no_geometry(header: DicomHeader) -> DataError:
    named = [name for key, name in _GEOMETRY_TAGS.items() if not header.text(key)]
    modality = header.text(_MODALITY)
    if modality in PROJECTIONS and named:
        return DataError(
            f"{header.path}: {' or '.join(named)}: found none in an image of modality {modality}, expected slices with a position in "
            "the patient. Give the file itself to read it as a single image."
        )
    return DataError(
        f"{header.path}: {' or '.join(named or _GEOMETRY_TAGS.values())}: missing or unreadable. Export the series again with its "
        "geometry."
    )


def without_copies(slices: list[Slice], folder: Path) -> list[Slice]:
    """Return the slices without those that another one repeats: the same pixels, scaled alike, at the same place.

    Args:
        slices: All slices of a series.
        folder: The folder, for a warning that names the copies.

    Returns:
        The slices, at most one with the same position and pixels.
    """
    places: dict[bytes, list[Slice]] = defaultdict(list)
    for one in slices:
        places[one.position.tobytes()].append(one)
    kept: list[Slice] = []
    copies: list[Slice] = []
    for group in places.values():
        contents: set[object] = set()
        for one in group:
            content = (one.rescale, _stored_pixels(one)) if len(group) > 1 else b""
            (copies if content in contents else kept).append(one)
            contents.add(content)
    if copies:
        shown = ", ".join(one.name for one in copies[:3])
        what = "file" if copies[0].frame is None else "frame"
        warn_once(
            f"{folder}: found {pluralise(len(copies), what)} ({shown}) that repeat another slice, expected each slice once. They are ignored; remove "
            "them if other programs must read the folder."
        )
    return kept


def _stored_pixels(one: Slice) -> object:
    """Return the stored bytes of a slice; a compressed frame, whose place in its file is not known, equals no other."""
    header = one.header
    start, length = header.pixel_offset, header.pixel_bytes or 0
    if one.frame is not None:
        count = max(1, header.number(_FRAMES, 1))
        if header.syntax not in UNCOMPRESSED or (8 * length) % count:
            return (header.path, one.frame)
        length //= count
        start += one.frame * length
    with header.path.open("rb") as file:
        file.seek(start)
        return file.read(length)
