"""Reading of DICOM structure sets (RTSTRUCT) as segments on the grid of their source series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, collected_warnings, warn_once
from medseg.io.dicom.dicom_header import has_mark, read_header
from medseg.io.dicom.dicom_series import read_series_geometry
from medseg.io.dicom.pydicom_files import read_dataset, without_content
from medseg.io.dicom.segmentations.planar_contours import contours_mask
from medseg.io.itk.sitk import LPS_TO_RAS
from medseg.labels.colours import Colour
from medseg.labels.segments import Planes, Segment, Segments, layered
from medseg.volumes.grid import Grid

_SERIES = 0x0020000E
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_SLICE = 0.2  # of the distance of slices
_COPY = "Export or copy the file again"


def read_rtstruct(path: Path, grid: Grid | None = None) -> Segments:
    """Read a structure set.

    A voxel belongs to a structure if its centre is enclosed by an odd number of the structure's contours in that slice, so
    that holes are left out whether they are keyholes or contours of their own. Points and open contours enclose nothing and
    are ignored with a warning.

    Args:
        path: The file.
        grid: Grid of the source series, or of an image on the same slices, in any orientation; None looks for the
            series in the folder of the file, in the folders within it, and in the folders next to it.

    Returns:
        The segments; their values are the numbers of the structures.

    Raises:
        DataError: The file is damaged, no grid is given and the series is not found, or contours are not in its slices.
    """
    dataset = read_dataset(path)
    with without_content(path, _COPY):
        grid = _series_grid(dataset, path) if grid is None else grid
        contours = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or ()}
        rois = _segments(dataset)
        axis = _slice_axis(contours.values(), grid)
        upright = grid.permuted(_last(axis), (False,) * 3)
        found = [
            (segment, _planes(contours.get(number), upright, path, segment.name))
            for number, segment in rois.items()
        ]
    segments = layered(upright, found, str(path))
    back = np.argsort(_last(axis))
    data = segments.volume.data.transpose(0, *(1 + back))
    return Segments(type(segments.volume)(np.ascontiguousarray(data), grid), segments.items, str(path))


def read_rtstruct_segments(path: Path) -> tuple[Segment, ...]:
    """Read the numbers, names and colours of the structures of a file, without contours.

    Args:
        path: The file.

    Returns:
        The segments, in the order of the file.

    Raises:
        DataError: The file is damaged.
    """
    dataset = read_dataset(path)
    with without_content(path, _COPY):
        return tuple(_segments(dataset).values())


def _segments(dataset: Any) -> dict[int, Segment]:
    """Return the segments by the number of their structure; if a number is below 1, all values are shifted to begin at 1."""
    colours: dict[int, Colour] = {}
    for item in dataset.get("ROIContourSequence") or ():
        if stated := item.get("ROIDisplayColor"):
            red, green, blue = (int(value) for value in stated)
            colours[int(item.ReferencedROINumber)] = red, green, blue
    rois = {int(item.ROINumber): item for item in dataset.get("StructureSetROISequence") or ()}
    offset = 1 - min(0, *rois) if rois and min(rois) < 1 else 0
    return {
        number: Segment(
            number + offset, str(item.get("ROIName") or f"label_{number + offset}"), colours.get(number)
        )
        for number, item in rois.items()
    }


def _last(axis: int) -> tuple[int, int, int]:
    """Return the order of the axes in which `axis` is the last one."""
    first, second = (one for one in range(3) if one != axis)
    return first, second, axis


def _slice_axis(items: Any, grid: Grid) -> int:
    """Return the axis of the grid along which contours do not extend."""
    spread = np.zeros(3)
    for item in items:
        for contour in item.get("ContourSequence") or ():
            if str(contour.ContourGeometricType) in _CLOSED:
                spread += np.ptp(_indices(contour, grid), axis=0)
    return int(spread.argmin()) if spread.any() else 2


def _indices(contour: Any, grid: Grid) -> NDArray[np.float64]:
    """Return the voxel indices `(N, 3)` of the points of a contour."""
    stored = contour.get_item("ContourData").value  # bytes, unless it was converted already
    numbers = stored.decode("ascii").strip(" \0").split("\\") if isinstance(stored, bytes) else stored
    points = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    inverse = np.linalg.inv(LPS_TO_RAS @ grid.affine)
    return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])


def _planes(item: Any, grid: Grid, path: Path, name: str) -> Planes:
    """Return the masks `(X, Y)` of a structure by slice."""
    by_slice: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    ignored = 0
    for contour in (item.get("ContourSequence") or ()) if item is not None else ():
        if str(contour.ContourGeometricType) not in _CLOSED:
            ignored += 1
            continue
        indices = _indices(contour, grid)
        place = float(indices[:, 2].mean())
        k = round(place)
        if np.abs(indices[:, 2] - k).max() > _OFF_SLICE or not 0 <= k < grid.shape[2]:
            raise DataError(
                f"{path}: structure {name}: found a contour at slice {place:.2f}, expected each contour in one of the slices 0 to "
                f"{grid.shape[2] - 1} of the series. Give the series on which the structures were delineated."
            )
        by_slice[k].append(indices[:, :2])
    if ignored:
        warn_once(
            f"{path}: structure {name}: found {ignored} points or open contours, expected closed contours in slices; they enclose no voxel and are ignored."
        )
    shape = grid.shape[:2]
    return {k: contours_mask(contours, (shape[0], shape[1])) for k, contours in by_slice.items()}


def _series_grid(dataset: Any, path: Path) -> Grid:
    """Return the grid of the series that a structure set refers to, found near the file."""
    wanted = {
        str(series.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    }
    for folder in _folders_near(path):
        uids = {read_header(file).text(_SERIES) for file in _first_marked(folder, path)}
        for uid in sorted(uids & wanted):
            with collected_warnings(), suppress(DataError):
                return read_series_geometry(folder, uid).grid
    raise DataError(
        f"{path}: found no series that it refers to in {path.parent} or the folders next to it, expected the images on which its structures were delineated, because a "
        "structure set states no grid. Give them: read_labels(FILE, like=SERIES), or copy the folder of the series next to the file."
    )


def _folders_near(path: Path) -> Iterator[Path]:
    folder = path.absolute().parent
    yield folder
    yield from sorted(one for one in folder.iterdir() if one.is_dir())
    yield from sorted(one for one in folder.parent.iterdir() if one.is_dir() and one != folder)


def _first_marked(folder: Path, path: Path) -> Iterator[Path]:
    """Yield the first DICOM files of a folder other than `path`; a series has one UID."""
    with suppress(OSError):
        files = (
            file for file in sorted(folder.iterdir()) if file.is_file() and file.absolute() != path.absolute()
        )
        marked = (file for file in files if has_mark(file))
        yield from (file for _, file in zip(range(3), marked, strict=False))
