"""Slices of a volume as pictures, the way a radiologist sees them.

The patient's right is on the left of axial and coronal pictures; anterior is up in axial ones, superior in
the others; sagittal ones face left. Slices are counted from 0 at the patient's left, back and feet (the
order of a RAS array). Pixels are square: rows and columns of unequal spacing are interpolated.

Everything here is a function from arrays to arrays; nothing draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError, did_you_mean
from medseg.labels.colours import IGNORED_COLOUR
from medseg.labels.label_table import Labels
from medseg.volumes.grid import reorient_array, reorientation
from medseg.volumes.resampling import AxisMap, resample, resample_labels
from medseg.volumes.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
Window = str | tuple[float, float] | None
Rgb = NDArray[np.uint8]
Array = NDArray[Any]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"soft tissue": (40, 400), "lung": (-600, 1500), "bone": (400, 1800), "brain": (40, 80)}
)  # level and width in HU
EDGES: Mapping[str, str] = MappingProxyType({"axial": "ALPR", "coronal": "SLIR", "sagittal": "SPIA"})
_AXIS: Mapping[str, int] = MappingProxyType({"sagittal": 0, "coronal": 1, "axial": 2})
_PERCENTILES = (0.5, 99.5)
_AIR_HU = -500  # a volume with this much below zero shows air around a patient: it is a CT
_SAMPLES = 1_000_000


def slice_rgb(
    volume: Volume,
    plane: Plane = "axial",
    index: int | None = None,
    window: Window = None,
    *,
    channel: int = 0,
    pixel_mm: float | None = None,
) -> Rgb:
    """One slice as a picture `(H, W, 3)`.

    Args:
        volume: an image in any orientation. Three channels of bytes are shown as colour.
        plane: across which axis to cut.
        index: which slice; the middle one unless given.
        window: level and width, a name in `WINDOWS`, or None: see `window_of`.
        channel: which channel of an image that is not in colour.
        pixel_mm: size of a pixel, mm; the smaller spacing in the plane unless given.

    Raises:
        ConfigError: unknown plane or window, or an index or channel that the volume does not have.
    """
    cut = _cut(volume, plane, index)
    if window is None and is_colour(volume):
        colours = _interpolated(cut, volume, plane, pixel_mm)
        return np.ascontiguousarray(np.moveaxis(np.rint(colours), 0, -1).astype(np.uint8))
    if not 0 <= channel < volume.channels:
        raise ConfigError(f"channel: found {channel}, expected 0 to {volume.channels - 1}. Choose one.")
    level, width = window_of(volume, window, channel=channel)
    values = np.nan_to_num(cut[channel].astype(np.float32), nan=level - width, posinf=level + width)
    shade = (_interpolated(values, volume, plane, pixel_mm) - (level - width / 2)) / width
    grey = np.rint(np.clip(shade, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def label_slice(
    volume: Volume, plane: Plane = "axial", index: int | None = None, *, pixel_mm: float | None = None
) -> Array:
    """Values `(H, W)` of one slice of a label map, on the pixels of `slice_rgb`; nearest neighbour.

    Raises:
        ConfigError: unknown plane, or an index that the volume does not have.
    """
    cut = _cut(volume, plane, index)[0]
    return resample_labels(cut, _maps(volume, plane, pixel_mm), (0, 0))


def overlay(rgb: Rgb, label_values: Array, labels: Labels, alpha: float = 0.45, outline: bool = True) -> Rgb:
    """Tint the labelled pixels of a picture with their label's colour.

    Args:
        rgb: `(H, W, 3)`.
        label_values: `(H, W)`, values as in files; 0 is left as it is, and what is to be ignored is tinted grey.
        labels: the colours.
        alpha: opacity of the tint, 0 to 1.
        outline: whether the outermost pixels of each region are drawn opaque.

    Raises:
        DataError: different sizes, or a value that `labels` does not hold.
    """
    if rgb.shape[:2] != label_values.shape:
        raise DataError(
            f"overlay: found a picture of {rgb.shape[:2]} and labels of {label_values.shape} pixels, expected "
            "equal sizes. Cut both from volumes on one grid."
        )
    colours = np.array([*(label.colour for label in labels), IGNORED_COLOUR], dtype=np.float32)
    tint = colours[labels.to_classes(label_values, where="overlay")]
    share = np.where(label_values != 0, np.float32(alpha), np.float32(0))
    if outline:
        share[region_edges(label_values)] = 1
    mixed = rgb + share[..., None] * (tint - rgb)
    result: Rgb = np.rint(mixed).astype(np.uint8)
    return result


def region_edges(label_values: Array) -> NDArray[np.bool_]:
    """The labelled pixels `(H, W)` that touch a pixel of another value; the picture's border is no edge."""
    edges: NDArray[np.bool_] = np.zeros(label_values.shape, dtype=bool)
    for axis in (0, 1):
        values, rows = np.moveaxis(label_values, axis, 0), np.moveaxis(edges, axis, 0)
        differs = values[1:] != values[:-1]
        rows[1:] |= differs
        rows[:-1] |= differs
    edges &= label_values != 0
    return edges


def window_of(volume: Volume, window: Window = None, *, channel: int = 0) -> tuple[float, float]:
    """Level and width that a window stands for.

    Without one, a CT (told by its air, far below zero) is shown at the soft-tissue window, anything else
    from its 0.5th to its 99.5th percentile.

    Raises:
        ConfigError: unknown name, or a width that is not positive.
    """
    if isinstance(window, str):
        if window not in WINDOWS:
            known = ", ".join(WINDOWS)
            raise ConfigError(
                f"unknown window {window!r}.{did_you_mean(window, WINDOWS)} Known windows: {known}."
            )
        return WINDOWS[window]
    if window is not None:
        level, width = window
        if not width > 0:
            raise ConfigError(f"window: found width {width}, expected more than 0. Give (level, width).")
        return float(level), float(width)
    low, high = _range(volume.data[channel])
    if low < _AIR_HU:
        return WINDOWS["soft tissue"]
    return (low + high) / 2, (high - low) or 1.0


def best_slice(labels: Volume, plane: Plane = "axial") -> int:
    """Index of the slice with the most labelled voxels; the middle one if there are none."""
    axis = _checked_axis(plane)
    foreground = reorient_array(labels.data[0] != 0, labels.grid.axcodes, "RAS")
    counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def is_colour(volume: Volume) -> bool:
    """Whether an image is a colour picture: three channels of bytes."""
    return volume.channels == 3 and volume.data.dtype == np.uint8


def slice_count(volume: Volume, plane: Plane = "axial") -> int:
    """Number of slices across `plane`."""
    return _ras_sizes(volume)[0][_checked_axis(plane)]


def extent_mm(volume: Volume, plane: Plane) -> tuple[float, float]:
    """Height and width of a picture, mm."""
    shape, spacing = _ras_sizes(volume)
    rows, columns = _in_plane(plane)
    return shape[rows] * spacing[rows], shape[columns] * spacing[columns]


def pixel_size(volume: Volume, plane: Plane) -> float:
    """The smaller spacing in the plane, mm: pixels of this size lose nothing."""
    _, spacing = _ras_sizes(volume)
    return min(spacing[axis] for axis in _in_plane(plane))


def labels_on_grid_of(image: Volume, labels: Volume) -> Volume:
    """A label map on the grid of `image`, for showing: turned, or resampled where grids differ.

    Raises:
        DataError: several channels, or values that are not whole numbers.
    """
    data = labels.data
    if data.dtype.kind == "f" and np.array_equal(data, np.rint(data)):
        data = data.astype(np.int32)  # read as an image from a file that stores floats
    if data.shape[0] != 1 or data.dtype.kind not in "iub":
        raise DataError(
            f"label map: found {data.shape[0]} channels of {data.dtype}, expected one channel of whole "
            "numbers. Give the label map, not an image."
        )
    volume = labels.with_data(data.astype(np.uint8) if data.dtype == bool else data, kind="label")
    return volume.resampled(like=image.grid)  # interpolates only where the grids differ


def _cut(volume: Volume, plane: Plane, index: int | None) -> Array:
    """The slice `(C, H, W)` as it is seen, still with the spacing of the volume."""
    axis, count = _checked_axis(plane), slice_count(volume, plane)
    index = count // 2 if index is None else index
    if not 0 <= index < count:
        raise ConfigError(f"{plane} slice: found {index}, expected 0 to {count - 1}. Choose one of these.")
    facing = reorient_array(volume.data, volume.grid.axcodes, "RAS")
    cut = np.take(facing, index, axis=axis + 1)
    # Columns then run to the patient's left (or back) and rows to the front or head: up is last, so flip both.
    seen: Array = np.swapaxes(cut, 1, 2)[:, ::-1, ::-1]
    return seen


def _interpolated(cut: Array, volume: Volume, plane: Plane, pixel_mm: float | None) -> Array:
    return resample(cut, _maps(volume, plane, pixel_mm), (1, 1))


def _maps(volume: Volume, plane: Plane, pixel_mm: float | None) -> tuple[AxisMap, AxisMap]:
    shape, spacing = _ras_sizes(volume)
    rows, columns = _in_plane(plane)
    pixel = pixel_mm or pixel_size(volume, plane)
    height, width = (
        AxisMap.resize(shape[axis], max(1, round(shape[axis] * spacing[axis] / pixel)))
        for axis in (rows, columns)
    )
    return height, width


def _ras_sizes(volume: Volume) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing (mm) of the volume turned to RAS."""
    axes, _ = reorientation(volume.grid.axcodes, "RAS")
    return tuple(volume.grid.shape[a] for a in axes), tuple(volume.spacing[a] for a in axes)


def _in_plane(plane: Plane) -> tuple[int, int]:
    """RAS axes of the rows and columns of a picture."""
    first, second = (axis for axis in range(3) if axis != _checked_axis(plane))
    return second, first


def _checked_axis(plane: str) -> int:
    if plane not in _AXIS:
        raise ConfigError(
            f"unknown plane {plane!r}.{did_you_mean(plane, PLANES)} Known: {', '.join(PLANES)}."
        )
    return _AXIS[plane]


def _range(data: Array) -> tuple[float, float]:
    """Percentiles of a regular sample of the finite values; 0 and 1 if there are none."""
    step = max(1, round((data.size / _SAMPLES) ** (1 / 3)))
    sample = data[::step, ::step, ::step]
    finite = sample[np.isfinite(sample)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, _PERCENTILES)
    return float(low), float(high)
