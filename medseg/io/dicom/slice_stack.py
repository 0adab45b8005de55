"""The slices of a series in space: their order, the distance between them, and whether they are a regular stack.

Slices are sorted by their position along the normal; neither file names nor instance numbers nor the thickness of a slice
are trusted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_MODALITY, _IMAGE_TYPE, _FRAMES, _ROWS, _COLUMNS = 0x00080060, 0x00080008, 0x00280008, 0x00280010, 0x00280011
_DECODED = (
    *UNCOMPRESSED,
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),
    "1.2.840.10008.1.2.5",
)
PROJECTIONS = (
    "CR",
    "DX",
    "DR",
    "MG",
    "US",
    "XA",
    "RF",
    "OT",
    "SC",
    "ES",
    "GM",
    "SM",
    "OP",
    "XC",
    "IO",
    "PX",
)
_UNEVEN_FRACTION, _UNEVEN_MM = 0.01, 0.01
_ROUNDED_FRACTION, _ROUNDED_MM, _MOST_ROUNDED = 0.05, 0.06, 0.1  # scanners round positions to one decimal
_DIRECTIONS_EQUAL, _SPACING_EQUAL_MM = 1e-3, 1e-3


@dataclass(frozen=True)
class Slice:
    """The geometry of one DICOM file in LPS coordinates.

    Attributes:
        header: Description of the file.
        orientation: Directions along a row and along a column, `(2, 3)`.
        position: Centre of the first pixel in mm, `(3,)`.
        spacing: Distance (mm) between rows and between columns.
        thickness: Distance (mm) to the next slice according to this file; 0 if it is not stated.
        rescale: Slope and intercept.
    """

    header: DicomHeader
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    rescale: tuple[float, float]


def slice_of(header: DicomHeader) -> Slice:
    """Return the geometry of a file.

    Args:
        header: Description of the file.

    Returns:
        Its slice.

    Raises:
        DataError: It holds several frames or a mosaic, is compressed in a way that is not decoded, or states no position.
    """
    file, tag = header.path, header.text
    if header.number(_FRAMES, 1) > 1 or tag(PER_FRAME) or PER_FRAME in header.values:
        raise DataError(
            f"{file}: found a multi-frame file of {pluralise(max(1, header.number(_FRAMES, 1)), 'frame')}, expected one file per slice. Convert it, "
            "for example with dcm2niix."
        )
    if "MOSAIC" in tag(_IMAGE_TYPE).upper().split("\\"):
        raise DataError(
            f"{file}: found a mosaic of slices, expected one file per slice. Convert it with dcm2niix."
        )
    if header.syntax not in _DECODED:
        raise DataError(
            f"{file}: TransferSyntaxUID: found {header.syntax!r}, expected an uncompressed one, JPEG, JPEG-LS, JPEG 2000 or RLE. "
            "Decompress the series, for example with gdcmconv --raw."
        )
    try:
        orientation = np.array(tag(0x00200037).split("\\"), dtype=np.float64).reshape(2, 3)
        position = np.array(tag(0x00200032).split("\\"), dtype=np.float64).reshape(3)
        rows, columns = (float(value) for value in tag(0x00280030).split("\\"))
        thickness = float(tag(0x00180088) or tag(0x00180050) or 0)
        rescale = (float(tag(0x00281053) or 1), float(tag(0x00281052) or 0))
    except ValueError:
        raise _no_geometry(header) from None
    return Slice(header, orientation, position, (rows, columns), thickness, rescale)


def _no_geometry(header: DicomHeader) -> DataError:
    named = [name for key, name in _GEOMETRY_TAGS.items() if not header.text(key)]
    modality = header.text(_MODALITY)
    if modality in PROJECTIONS and named:
        return DataError(
            f"{header.path}: {' or '.join(named)}: found none in an image of modality {modality}, expected slices with a position in "
            "the patient. Save it as PNG or TIFF to use it as a natural image."
        )
    return DataError(
        f"{header.path}: {' or '.join(named or _GEOMETRY_TAGS.values())}: missing or unreadable. Export the series again with its "
        "geometry."
    )


def without_copies(slices: list[Slice], folder: Path) -> list[Slice]:
    """Return the slices without those that another file repeats, byte for byte.

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
        pixels: set[bytes] = set()
        for one in group:
            content = _stored_pixels(one.header) if len(group) > 1 else b""
            (copies if content in pixels else kept).append(one)
            pixels.add(content)
    if copies:
        shown = ", ".join(one.header.path.name for one in copies[:3])
        warn_once(
            f"{folder}: found {pluralise(len(copies), 'file')} ({shown}) that repeat another slice, expected each slice once. They are ignored; remove "
            "them if other programs shall read the folder."
        )
    return kept


def _stored_pixels(header: DicomHeader) -> bytes:
    with header.path.open("rb") as file:
        file.seek(header.pixel_offset)
        return file.read(header.pixel_bytes or 0)


def stack(slices: list[Slice], folder: Path) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Return how the slices of a series are stacked.

    Args:
        slices: The slices, in any order.
        folder: The folder, for messages.

    Returns:
        Order of the slices along their normal, position of the first one, and step to the next one (mm, LPS).

    Raises:
        DataError: The slices differ in direction, pixel spacing or size, are not evenly spaced, or are several volumes.
    """
    first = slices[0]
    _check_alike(slices, folder)
    normal = np.cross(*first.orientation)
    heights = np.array([one.position @ normal for one in slices])
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    if len(order) == 1:
        if not first.thickness:
            warn_once(
                f"{folder}: found one slice without SliceThickness, expected its thickness; it is taken as 1 mm thick. Export it with its thickness."
            )
        else:
            warn_once(
                f"{folder}: found one slice, expected several; its SliceThickness of {first.thickness:g} mm is taken as the voxel size. Give "
                "the whole series if there is more."
            )
        return order, first.position, normal * (abs(first.thickness) or 1.0)
    gaps = np.diff(heights[order])
    _check_repeated(slices, order, heights, folder)
    median = float(np.median(gaps))
    positions = np.array([slices[i].position for i in order])
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    tolerance = max(_UNEVEN_FRACTION * median, _UNEVEN_MM)
    drift = float(np.linalg.norm(np.diff(positions, axis=0) - step, axis=1).max())
    if np.abs(gaps - median).max() <= tolerance and drift <= 2 * tolerance:
        return order, positions[0], step
    return order, *_rounded(slices, order, positions, normal, folder)


def _rounded(
    slices: list[Slice],
    order: list[int],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    folder: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return first position and step of the straight, even stack whose positions were rounded, or raise if there is none."""
    index = np.arange(len(order)) - (len(order) - 1) / 2
    step = index @ positions / (index @ index)
    start = positions.mean(axis=0) + index[0] * step
    away = positions - (start + np.arange(len(order))[:, None] * step)
    along, gaps = away @ normal, np.diff(positions @ normal)
    median = float(np.median(gaps))
    mean = float(gaps.mean())
    allowed = min(max(_ROUNDED_FRACTION * mean, _ROUNDED_MM), _MOST_ROUNDED * mean)
    if np.abs(along).max() > allowed:
        worst = int(np.abs(gaps - median).argmax())
        names = [slices[order[worst + offset]].header.path.name for offset in (0, 1)]
        raise DataError(
            f"{folder}: uneven gaps between slices: found {gaps.min():.3f} to {gaps.max():.3f} mm, expected "
            f"{median:.3f} mm throughout; {gaps[worst]:.3f} mm between {names[0]} and {names[1]} at {positions[worst] @ normal:.2f} mm. "
            "A slice is missing, doubled, or the spacing changes; export the series again or split it."
        )
    sideways = away - np.outer(along, normal)
    drift = np.linalg.norm(sideways, axis=1).max()
    if drift > allowed:
        moved = np.linalg.norm(np.diff(positions, axis=0) - step, axis=1)
        worst = int(moved.argmax())
        raise DataError(
            f"{folder}: slices are shifted sideways against each other: found {moved.max():.3f} mm between "
            f"{slices[order[worst]].header.path.name} and {slices[order[worst + 1]].header.path.name}, expected a straight stack. Export "
            "the series again."
        )
    return start, step


def _check_alike(slices: list[Slice], folder: Path) -> None:
    """Raise unless all slices have the same direction, pixel spacing and size."""
    first = slices[0]

    def differing(what: str, fix: str, values: Any, tolerance: float) -> None:
        for one in slices:
            if np.abs(np.subtract(values(one), values(first))).max() > tolerance:
                raise DataError(
                    f"{folder}: slices differ in {what}: found {_numbers(values(one))} in {one.header.path.name}, expected "
                    f"{_numbers(values(first))} as in {first.header.path.name}. {fix}."
                )

    differing("orientation", "Remove the localizer", lambda one: one.orientation.ravel(), _DIRECTIONS_EQUAL)
    differing("pixel spacing", "Split the series", lambda one: one.spacing, _SPACING_EQUAL_MM)
    size = (_COLUMNS, _ROWS)
    differing("size", "Split the series", lambda one: [one.header.number(tag) for tag in size], 0)


def _check_repeated(
    slices: list[Slice], order: list[int], heights: NDArray[np.float64], folder: Path
) -> None:
    """Raise if several slices are at the same place: volumes of a 4D series, or a doubled slice."""
    sorted_heights = heights[order]
    span = sorted_heights[-1] - sorted_heights[0]
    near = min(_UNEVEN_MM, _MOST_ROUNDED * span / len(order)) if span > 0 else _UNEVEN_MM
    places = np.concatenate([[0], np.cumsum(np.diff(sorted_heights) > near)])
    counts = np.bincount(places)
    if counts.max() == 1:
        return
    if len(counts) == 1:
        raise DataError(
            f"{folder}: found all {counts[0]} slices at the same place, expected one per place. Export the series again with "
            "the positions of its slices, or split it."
        )
    if counts.min() == counts.max():
        raise DataError(
            f"{folder}: found {counts[0]} volumes at the same {pluralise(len(counts), 'place')}, expected one: a 4D series, such as phases, "
            "echoes or directions. Split it, for example with dcm2niix."
        )
    at = int(np.flatnonzero(counts > 1)[0])
    doubled = [order[i] for i in np.flatnonzero(places == at)[:2]]
    names = " and ".join(slices[i].header.path.name for i in doubled)
    raise DataError(
        f"{folder}: found {names} at the same place ({heights[doubled[0]]:.2f} mm) with different pixels, expected one slice "
        "per place. Remove one of them."
    )


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in np.ravel(values))
