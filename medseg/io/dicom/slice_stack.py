"""The slices of a series in space: their order, the distance between them, and whether they are a regular stack.

Slices are sorted by their position along the normal; neither file names nor instance numbers nor the thickness of a slice
are trusted. Uneven gaps are refused, or resampled on request: then slices are interpolated linearly between their true positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, warn_once
from medseg.io.dicom.placed_slices import Slice
from medseg.io.dicom.uneven_gaps import Uneven
from medseg.runtime.formatting import pluralise

_UNEVEN_FRACTION, _UNEVEN_MM = 0.01, 0.01
_ROUNDED_FRACTION, _ROUNDED_MM, _MOST_ROUNDED = 0.05, 0.06, 0.1  # scanners round positions to one decimal
_DIRECTIONS_EQUAL, _SPACING_EQUAL_MM = 1e-3, 1e-3
_SLICES_EQUAL = 1e-3  # steps
_ROWS, _COLUMNS = 0x00280010, 0x00280011


@dataclass(frozen=True)
class Stack:
    """A regular stack of slices.

    Attributes:
        order: Indices of the slices along their normal.
        start: Position (mm, LPS) of the first slice.
        step: Step (mm, LPS) to the next slice.
        count: Number of slices of the stack.
        places: Place of each slice, in steps from the first one, where slices are to be interpolated; None if the slices are
            those of the stack.
    """

    order: list[int]
    start: NDArray[np.float64]
    step: NDArray[np.float64]
    count: int
    places: NDArray[np.float64] | None = None


def stack(slices: list[Slice], folder: Path, uneven: Uneven = "refuse") -> Stack:
    """Return how the slices of a series are stacked.

    Args:
        slices: The slices, in any order.
        folder: The folder, for messages.
        uneven: What to do with uneven gaps.

    Returns:
        The stack. Uneven slices are resampled to the lower quartile of their gaps, which is the distance of most slices if some are
        missing, and the smaller one of two distances.

    Raises:
        DataError: The slices differ in direction, pixel spacing or size, are not evenly spaced and `uneven` is ``"refuse"``, or are
            several volumes.
    """
    first = slices[0]
    _check_alike(slices, folder)
    normal = np.cross(*first.orientation)
    heights = np.array([one.position @ normal for one in slices])
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    if len(order) == 1:
        _warn_of_one_slice(first, folder)
        return Stack(order, first.position, normal * (abs(first.thickness) or 1.0), 1)
    gaps = np.diff(heights[order])
    _check_repeated(slices, order, heights, folder)
    median = float(np.median(gaps))
    positions = np.array([slices[i].position for i in order])
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    tolerance = max(_UNEVEN_FRACTION * median, _UNEVEN_MM)
    drift = float(np.linalg.norm(np.diff(positions, axis=0) - step, axis=1).max())
    if np.abs(gaps - median).max() <= tolerance and drift <= 2 * tolerance:
        return Stack(order, positions[0], step, len(order))
    rounded = _rounded(slices, order, positions, normal, folder)
    if rounded is not None:
        return Stack(order, *rounded, len(order))
    if uneven == "refuse":
        raise _uneven(slices, order, heights[order], folder)
    return _resampled(slices, order, positions, heights[order], folder)


def _warn_of_one_slice(one: Slice, folder: Path) -> None:
    if not one.thickness:
        warn_once(
            f"{folder}: found one slice without SliceThickness, expected its thickness; it is taken as 1 mm thick. Export it with its thickness."
        )
    else:
        warn_once(
            f"{folder}: found one slice, expected several; its SliceThickness of {one.thickness:g} mm is taken as the voxel size. Give "
            "the whole series if there is more."
        )


def _resampled(
    slices: list[Slice],
    order: list[int],
    positions: NDArray[np.float64],
    heights: NDArray[np.float64],
    folder: Path,
) -> Stack:
    """Return the even stack to which slices with uneven gaps are interpolated."""
    gap = float(np.quantile(np.diff(heights), 0.25, method="lower"))
    above = heights - heights[0]
    direction = (
        above @ (positions - positions[0]) / (above @ above)
    )  # per mm along the normal; sheared if tilted
    away = np.linalg.norm(positions - positions[0] - above[:, None] * direction, axis=1)
    if away.max() > max(_ROUNDED_FRACTION * gap, _ROUNDED_MM):
        raise _shifted(slices, order, positions, above[:, None] * direction, folder)
    count = int(np.floor(above[-1] / gap + _SLICES_EQUAL)) + 1
    warn_once(
        f"{folder}: found gaps of {np.diff(heights).min():.3f} to {np.diff(heights).max():.3f} mm between {len(order)} slices, expected equal ones; "
        f"interpolated linearly to {count} slices with a distance of {gap:.3f} mm, as requested."
    )
    return Stack(order, positions[0], gap * direction, count, above / gap)


def _rounded(
    slices: list[Slice],
    order: list[int],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    folder: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return first position and step of the straight, even stack whose positions were rounded; None if gaps are uneven."""
    index = np.arange(len(order)) - (len(order) - 1) / 2
    step = index @ positions / (index @ index)
    start = positions.mean(axis=0) + index[0] * step
    fitted = np.arange(len(order))[:, None] * step
    away = positions - (start + fitted)
    along = away @ normal
    mean = float(np.diff(positions @ normal).mean())
    allowed = min(max(_ROUNDED_FRACTION * mean, _ROUNDED_MM), _MOST_ROUNDED * mean)
    if np.abs(along).max() > allowed:
        return None
    sideways = away - np.outer(along, normal)
    if np.linalg.norm(sideways, axis=1).max() > allowed:
        raise _shifted(slices, order, positions, fitted, folder)
    return start, step


def _uneven(slices: list[Slice], order: list[int], heights: NDArray[np.float64], folder: Path) -> DataError:
    gaps = np.diff(heights)
    median = float(np.median(gaps))
    worst = int(np.abs(gaps - median).argmax())
    names = [slices[order[worst + offset]].name for offset in (0, 1)]
    return DataError(
        f"{folder}: uneven gaps between slices: found {gaps.min():.3f} to {gaps.max():.3f} mm, expected "
        f"{median:.3f} mm throughout; {gaps[worst]:.3f} mm between {names[0]} and {names[1]} at {heights[worst]:.2f} mm. "
        "A slice is missing, doubled, or the spacing changes; export the series again, or interpolate slices with --uneven resample (uneven in Python "
        "and configs)."
    )


def _shifted(
    slices: list[Slice],
    order: list[int],
    positions: NDArray[np.float64],
    fitted: NDArray[np.float64],
    folder: Path,
) -> DataError:
    moved = np.linalg.norm(np.diff(positions, axis=0) - np.diff(fitted, axis=0), axis=1)
    worst = int(moved.argmax())
    return DataError(
        f"{folder}: slices are shifted sideways against each other: found {moved.max():.3f} mm between "
        f"{slices[order[worst]].name} and {slices[order[worst + 1]].name}, expected a straight stack. Export "
        "the series again."
    )


def resampled_slices(data: NDArray[Any], found: Stack) -> NDArray[Any]:
    """Return slices interpolated linearly at the places of a regular stack.

    Args:
        data: Voxels `(C, X, Y, Z)` of the slices in the order of the stack.
        found: The stack; without `places`, nothing is to be done.

    Returns:
        Voxels `(C, X, Y, count)` of the same type; whole numbers are rounded.
    """
    if found.places is None:
        return data
    result = np.empty((*data.shape[:3], found.count), data.dtype)
    for k in range(found.count):
        after = min(max(int(np.searchsorted(found.places, k)), 1), len(found.places) - 1)
        low, high = found.places[after - 1], found.places[after]
        weight = np.clip((k - low) / (high - low), 0, 1)
        weight = round(weight) if min(weight, 1 - weight) < _SLICES_EQUAL else weight
        mixed = (1 - weight) * data[..., after - 1] + weight * data[..., after]
        result[..., k] = np.round(mixed) if data.dtype.kind in "iu" else mixed
    return result


def _check_alike(slices: list[Slice], folder: Path) -> None:
    """Raise unless all slices have the same direction, pixel spacing and size."""
    first = slices[0]

    def differing(what: str, fix: str, values: Any, tolerance: float) -> None:
        for one in slices:
            if np.abs(np.subtract(values(one), values(first))).max() > tolerance:
                raise DataError(
                    f"{folder}: slices differ in {what}: found {_numbers(values(one))} in {one.name}, expected "
                    f"{_numbers(values(first))} as in {first.name}. {fix}."
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
    names = " and ".join(slices[i].name for i in doubled)
    raise DataError(
        f"{folder}: found {names} at the same place ({heights[doubled[0]]:.2f} mm) with different pixels, expected one slice "
        "per place. Remove one of them."
    )


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in np.ravel(values))
