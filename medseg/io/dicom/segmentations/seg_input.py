"""Reading of DICOM segmentations (SEG) as segments on the grid of their source series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.dicom.pydicom_files import LABELMAP_SEG, read_dataset, require_dicom_packages, without_content
from medseg.io.itk.sitk import LPS_TO_RAS
from medseg.labels.colours import Colour
from medseg.labels.segments import Planes, Segment, Segments, layered
from medseg.volumes.grid import Grid

_VALUE_TEXT = re.compile(r"Label value (\d{1,5})")
_UNEVEN = 0.05  # of the distance of slices
_COPY = "Export or copy the file again"


@dataclass(frozen=True)
class _Frame:
    """One frame: its position in LPS (mm), its segment number (None in a LABELMAP), and the UID of its source image."""

    position: NDArray[np.float64]
    number: int | None
    source: str


@dataclass(frozen=True)
class _Geometry:
    """The grid of a segmentation, and the index of the slice of each frame."""

    grid: Grid
    slices: list[int]


def read_seg(path: Path) -> Segments:
    """Read a DICOM segmentation of type BINARY or LABELMAP.

    Such files usually leave out frames in which no voxel is segmented. Empty slices before the first and after the last frame
    are restored from the list of source images, if that list is in the order of the slices.

    Args:
        path: The file.

    Returns:
        The segments. Their values are those of the original label map if medseg wrote the file, and the segment numbers
        otherwise.

    Raises:
        DataError: The file is damaged, its type is FRACTIONAL, or its frames are not evenly spaced parallel slices.
    """
    require_dicom_packages(path)
    dataset = read_dataset(path)
    with without_content(path, _COPY):
        kind = str(dataset.get("SegmentationType"))
        if kind not in ("BINARY", "LABELMAP"):
            raise DataError(
                f"{path}: SegmentationType: found {kind}, expected BINARY or LABELMAP. Convert it to a label map with a threshold."
            )
        frames = [_frame(dataset, group, path) for group in dataset.PerFrameFunctionalGroupsSequence]
        geometry = _geometry(dataset, frames, path)
        labelmap = str(dataset.SOPClassUID) == LABELMAP_SEG
        found = [
            (segment, planes)
            for segment, planes in _planes(dataset, frames, geometry, labelmap=labelmap, path=path)
        ]
    return layered(geometry.grid, found, str(path))


def read_seg_segments(path: Path) -> tuple[Segment, ...]:
    """Read the values, names and colours of the segments of a file, without pixels.

    Args:
        path: The file.

    Returns:
        The segments, in the order of the file.

    Raises:
        DataError: The file is damaged.
    """
    require_dicom_packages(path)
    dataset = read_dataset(path, pixels=False)
    with without_content(path, _COPY):
        return tuple(_segments(dataset, labelmap=str(dataset.SOPClassUID) == LABELMAP_SEG).values())


def _segments(dataset: Any, *, labelmap: bool) -> dict[int, Segment]:
    """Return the description of each segment, by segment number."""
    items = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
    if labelmap:
        items.pop(0, None)  # the background
    stated = [_VALUE_TEXT.fullmatch(str(item.get("SegmentDescription") or "")) for item in items.values()]
    values = [int(match[1]) for match in stated if match]
    if len(set(values)) < len(items) or 0 in values:
        values = list(items)
    return {
        number: Segment(value, str(item.get("SegmentLabel") or f"label_{value}"), _colour(item))
        for (number, item), value in zip(items.items(), values, strict=True)
    }


def _colour(item: Any) -> Colour | None:
    from highdicom.color import CIELabColor

    stated = item.get("RecommendedDisplayCIELabValue")
    if not stated:
        return None
    red, green, blue = CIELabColor.from_dicom_value([int(value) for value in stated]).to_rgb(clip=True)
    return red, green, blue


def _frame(dataset: Any, group: Any, path: Path) -> _Frame:
    position = _shared_or_own(dataset, group, "PlanePositionSequence", path).ImagePositionPatient
    number = None
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if identified := group.get("SegmentIdentificationSequence") or shared.get(
        "SegmentIdentificationSequence"
    ):
        number = int(identified[0].ReferencedSegmentNumber)
    source = ""
    for derivation in group.get("DerivationImageSequence") or ():
        images = list(derivation.get("SourceImageSequence") or ())
        source = str(images[0].ReferencedSOPInstanceUID) if len(images) == 1 else source
    return _Frame(np.array(position, dtype=np.float64), number, source)


def _shared_or_own(dataset: Any, group: Any, name: str, path: Path) -> Any:
    """Return a functional group of a frame, or the one that all frames share."""
    found = group.get(name) or dataset.SharedFunctionalGroupsSequence[0].get(name)
    if not found:
        raise DataError(f"{path}: {name}: found none for a frame, expected one. {_COPY}.")
    return found[0]


def _geometry(dataset: Any, frames: list[_Frame], path: Path) -> _Geometry:
    """Return the grid of the slices, and the index of the slice of each frame."""
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    directions = _equal(
        [
            _shared_or_own(dataset, group, "PlaneOrientationSequence", path).ImageOrientationPatient
            for group in groups
        ],
        "ImageOrientationPatient",
        path,
    ).reshape(2, 3)
    measures = [_shared_or_own(dataset, group, "PixelMeasuresSequence", path) for group in groups]
    spacing = _equal([one.PixelSpacing for one in measures], "PixelSpacing", path)
    thickness = float(measures[0].get("SpacingBetweenSlices") or measures[0].get("SliceThickness") or 1)
    normal = np.cross(*directions)
    by_height = sorted(
        {float(np.round(frame.position @ normal, 4)): frame.position for frame in frames}.items()
    )
    positions = np.array([position for _, position in by_height])
    first, step, count = _stack(positions, normal * thickness, _source_order(dataset, frames), frames, path)
    slices = [round(float((frame.position - first) @ normal / (step @ normal))) for frame in frames]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * spacing[1], directions[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first
    shape = (int(dataset.Columns), int(dataset.Rows), count)
    return _Geometry(Grid(shape, LPS_TO_RAS @ affine), slices)


def _equal(values: list[Any], name: str, path: Path) -> NDArray[np.float64]:
    """Return the value of an attribute, which has to be the same in all frames."""
    found = np.array(values, dtype=np.float64)
    if np.abs(found - found[0]).max() > 1e-4:
        raise DataError(
            f"{path}: {name}: found several values, expected one for all frames. Convert the file."
        )
    return np.asarray(found[0])


def _source_order(dataset: Any, frames: list[_Frame]) -> dict[str, int]:
    """Return the position of each source image in the list of the referenced series; empty if a frame names no image of it."""
    series = list(dataset.get("ReferencedSeriesSequence") or ())
    if len(series) != 1:
        return {}
    images = series[0].get("ReferencedInstanceSequence") or ()
    order = {str(image.ReferencedSOPInstanceUID): place for place, image in enumerate(images)}
    return order if all(frame.source in order for frame in frames) else {}


def _stack(
    positions: NDArray[np.float64],
    default_step: NDArray[np.float64],
    order: Mapping[str, int],
    frames: list[_Frame],
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the position of the first slice (LPS, mm), the step to the next one, and the number of slices.

    Args:
        positions: Positions of the slices that have frames, sorted along the normal.
        default_step: Step that the file states for neighbouring slices.
        order: Place of each source image; empty if it is unknown.
        frames: The frames.
        path: The file, for messages.

    Raises:
        DataError: The slices are not evenly spaced.
    """
    if order:
        places = np.array([order[frame.source] for frame in frames])
        where = np.array([frame.position for frame in frames])
        step = default_step
        if len(set(places.tolist())) > 1:
            centred = places - places.mean()
            step = centred @ (where - where.mean(axis=0)) / (centred @ centred)
        start = (where - places[:, None] * step).mean(axis=0)
        away = np.linalg.norm(where - start - places[:, None] * step, axis=1).max()
        if away <= _UNEVEN * np.linalg.norm(step):
            backwards = step @ default_step < 0
            last = start + (len(order) - 1) * step
            return (last, -step, len(order)) if backwards else (start, step, len(order))
    if len(positions) == 1:
        return positions[0], default_step, 1
    gaps = np.array([np.linalg.norm(after - before) for before, after in pairwise(positions)])
    counts = np.round(gaps / gaps.min())
    total = int(counts.sum())
    step = (positions[-1] - positions[0]) / total
    expected = positions[0] + np.concatenate([[0], np.cumsum(counts)])[:, None] * step
    if np.linalg.norm(positions - expected, axis=1).max() > _UNEVEN * np.linalg.norm(step):
        raise DataError(
            f"{path}: slices: found gaps from {gaps.min():.3f} to {gaps.max():.3f} mm, expected evenly spaced slices. Segment an evenly spaced series."
        )
    return positions[0], step, total + 1


def _planes(
    dataset: Any, frames: list[_Frame], geometry: _Geometry, *, labelmap: bool, path: Path
) -> Iterator[tuple[Segment, Planes]]:
    """Yield the segments with their planes `(X, Y)`."""
    segments = _segments(dataset, labelmap=labelmap)
    planes: dict[int, dict[int, NDArray[np.bool_]]] = {number: {} for number in segments}
    for frame, k, pixels in zip(frames, geometry.slices, _pixels(dataset, path), strict=True):
        numbers = [int(value) for value in np.unique(pixels) if value] if labelmap else [frame.number]
        for number in numbers:
            if number not in planes:
                raise DataError(
                    f"{path}: found pixels of segment {number}, which the file does not describe, expected segments {list(segments)[:5]}. {_COPY}."
                )
            mask = (pixels == number if labelmap else pixels > 0).T
            if mask.any():
                own = planes[number]
                own[k] = own[k] | mask if k in own else mask
    for number, segment in segments.items():
        yield segment, planes[number]


def _pixels(dataset: Any, path: Path) -> Iterator[NDArray[Any]]:
    """Yield the pixels `(rows, columns)` of the frames, one at a time."""
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    if int(dataset.BitsAllocated) > 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        from pydicom.pixels import iter_pixels

        yield from iter_pixels(dataset)
        return
    stored = np.frombuffer(dataset.PixelData, np.uint8)
    size = rows * columns
    if len(stored) * 8 < size * count:
        raise DataError(
            f"{path}: PixelData: found {len(stored)} bytes, expected {-(-size * count // 8)}. {_COPY}."
        )
    for index in range(count):  # frames follow each other without padding, so one may begin within a byte
        first, last = index * size, (index + 1) * size
        bits = np.unpackbits(stored[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(rows, columns)
