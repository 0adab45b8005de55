"""Slices of a volume as RGB images in radiological convention.

The patient's right is on the left of axial and coronal images. Anterior is up in axial images, superior in the others.
Sagittal images face left. Slices are counted from 0 at the patient's left, back and feet (the order of a RAS array).
Pixels are square: rows and columns of unequal spacing are interpolated.

All functions map arrays to arrays; none of them draws.
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
from medseg.volumes.orientation import reorient_array, reorientation
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
_CT_GOES_BELOW = -500  # values below this are air around a patient, so the volume is a CT
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
    """Return one slice as an RGB image.

    Args:
        volume: Image in any orientation. Three channels of bytes are shown as colours.
        plane: Plane of the slice.
        index: Index of the slice; by default the middle one.
        window: Level and width, a name in `WINDOWS`, or None; see `window_of`.
        channel: Channel of an image without colours.
        pixel_mm: Size of a pixel, mm; by default the smaller spacing in the plane.

    Returns:
        Pixels `(H, W, 3)`.

    Raises:
        ConfigError: The plane or window is unknown, or the volume does not have the index or channel.
    """
    cut = _displayed_slice(volume, plane, index)
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
    """Return one slice of a label map on the pixels of `slice_rgb`, by nearest neighbour.

    Args:
        volume: Label map in any orientation.
        plane: Plane of the slice.
        index: Index of the slice; by default the middle one.
        pixel_mm: Size of a pixel, mm; by default the smaller spacing in the plane.

    Returns:
        Label values `(H, W)`.

    Raises:
        ConfigError: The plane is unknown, or the volume does not have the index.
    """
    cut = _displayed_slice(volume, plane, index)[0]
    return resample_labels(cut, _maps(volume, plane, pixel_mm), (0, 0))


def overlay(rgb: Rgb, label_values: Array, labels: Labels, alpha: float = 0.45, outline: bool = True) -> Rgb:
    """Blend the labelled pixels of an image with the colours of their labels.

    Args:
        rgb: Image `(H, W, 3)`.
        label_values: Label values `(H, W)` as in files. Pixels with 0 are unchanged, and the ignore value is grey.
        labels: Label table with the colours.
        alpha: Opacity of the labels, 0 to 1.
        outline: Whether the outermost pixels of each label are opaque.

    Returns:
        Image `(H, W, 3)`.

    Raises:
        DataError: The sizes differ, or a value is not in `labels`.
    """
    if rgb.shape[:2] != label_values.shape:
        raise DataError(
            f"overlay: found an image of {rgb.shape[:2]} and labels of {label_values.shape} pixels, expected "
            "equal sizes. Use slices of volumes on the same grid."
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
    """Return the labelled pixels that touch a pixel with another value. The border of the image is not an edge.

    Args:
        label_values: Label values `(H, W)`.

    Returns:
        Boolean array `(H, W)`.

    Examples:
        >>> region_edges(np.array([[0, 1, 1, 1, 0]])).astype(int)
        array([[0, 1, 0, 1, 0]])
    """
    edges: NDArray[np.bool_] = np.zeros(label_values.shape, dtype=bool)
    for axis in (0, 1):
        values, rows = np.moveaxis(label_values, axis, 0), np.moveaxis(edges, axis, 0)
        differs = values[1:] != values[:-1]
        rows[1:] |= differs
        rows[:-1] |= differs
    edges &= label_values != 0
    return edges


def window_of(volume: Volume, window: Window = None, *, channel: int = 0) -> tuple[float, float]:
    """Return the level and width of an intensity window.

    By default a CT, which is recognised by values of air far below zero, has the soft-tissue window. Other images are
    shown from their 0.5th to their 99.5th percentile.

    Args:
        volume: Image that the window is for.
        window: Level and width, a name in `WINDOWS`, or None.
        channel: Channel whose values are measured.

    Returns:
        Level and width, in the units of the image.

    Raises:
        ConfigError: The name is unknown, or the width is not positive.
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
    if low < _CT_GOES_BELOW:
        return WINDOWS["soft tissue"]
    return (low + high) / 2, (high - low) or 1.0


def best_slice(labels: Volume, plane: Plane = "axial") -> int:
    """Return the index of the slice with the most labelled voxels; the middle one if there are none.

    Args:
        labels: Label map in any orientation.
        plane: Plane of the slices.

    Returns:
        Index from 0.
    """
    axis = _checked_axis(plane)
    foreground = reorient_array(labels.data[0] != 0, labels.grid.axcodes, "RAS")
    counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def is_colour(volume: Volume) -> bool:
    """Return whether an image has colours: three channels of bytes."""
    return volume.channels == 3 and volume.data.dtype == np.uint8


def slice_count(volume: Volume, plane: Plane = "axial") -> int:
    """Return the number of slices in a plane."""
    return _ras_sizes(volume)[0][_checked_axis(plane)]


def extent_mm(volume: Volume, plane: Plane) -> tuple[float, float]:
    """Return the height and width of a slice, mm."""
    shape, spacing = _ras_sizes(volume)
    rows, columns = _in_plane(plane)
    return shape[rows] * spacing[rows], shape[columns] * spacing[columns]


def pixel_size(volume: Volume, plane: Plane) -> float:
    """Return the smaller spacing in the plane, mm; pixels of this size lose no detail."""
    _, spacing = _ras_sizes(volume)
    return min(spacing[axis] for axis in _in_plane(plane))


def labels_on_grid_of(image: Volume, labels: Volume) -> Volume:
    """Return a label map on the grid of an image for display, resampled if the grids differ.

    Args:
        image: Image in any orientation.
        labels: Label map on any grid, also one that was read as an image.

    Returns:
        Label map on the grid of `image`.

    Raises:
        DataError: The label map has several channels or values that are not integers.
    """
    data = labels.data
    if data.dtype.kind == "f" and np.array_equal(data, np.rint(data)):
        data = data.astype(np.int32)  # it was read as an image from a file that stores floats
    if data.shape[0] != 1 or data.dtype.kind not in "iub":
        raise DataError(
            f"label map: found {data.shape[0]} channels of {data.dtype}, expected one channel of "
            "integers. Give the label map, not an image."
        )
    volume = labels.with_data(data.astype(np.uint8) if data.dtype == bool else data, kind="label")
    return volume.resampled(like=image.grid)  # interpolates only where the grids differ


def _displayed_slice(volume: Volume, plane: Plane, index: int | None) -> Array:
    """Return the slice `(C, H, W)` in its displayed orientation, with the spacing of the volume."""
    axis, count = _checked_axis(plane), slice_count(volume, plane)
    index = count // 2 if index is None else index
    if not 0 <= index < count:
        raise ConfigError(f"{plane} slice: found {index}, expected 0 to {count - 1}. Choose one of these.")
    facing = reorient_array(volume.data, volume.grid.axcodes, "RAS")
    cut = np.take(facing, index, axis=axis + 1)
    # Columns and rows now point right (or forward) and forward or up; an image starts at the top left, so flip both.
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
    """Return the shape and spacing (mm) of the volume in RAS orientation."""
    axes, _ = reorientation(volume.grid.axcodes, "RAS")
    return tuple(volume.grid.shape[a] for a in axes), tuple(volume.spacing[a] for a in axes)


def _in_plane(plane: Plane) -> tuple[int, int]:
    """Return the RAS axes of the rows and columns of an image."""
    first, second = (axis for axis in range(3) if axis != _checked_axis(plane))
    return second, first


def _checked_axis(plane: str) -> int:
    if plane not in _AXIS:
        raise ConfigError(
            f"unknown plane {plane!r}.{did_you_mean(plane, PLANES)} Known: {', '.join(PLANES)}."
        )
    return _AXIS[plane]


def _range(data: Array) -> tuple[float, float]:
    """Return two percentiles of a regular sample of the finite values; 0 and 1 if there are none."""
    step = max(1, round((data.size / _SAMPLES) ** (1 / 3)))
    sample = data[::step, ::step, ::step]
    finite = sample[np.isfinite(sample)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, _PERCENTILES)
    return float(low), float(high)
