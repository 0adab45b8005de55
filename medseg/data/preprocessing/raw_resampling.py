"""Resampling of raw intensities before anything else, and of label maps back to the file by the nearest voxel.

TotalSegmentator (Wasserthal et al. 2023, Radiology: Artificial Intelligence 5(5)) brings an image to the spacing of its
networks in this way, so that nnU-Net finds nothing left to resample: the centres of the outermost voxels stay in place, as
in ``scipy.ndimage.zoom`` without ``grid_mode``, and intensities become whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.data.preprocessing.prepare import LabelTarget, Prepared, Preprocessing
from medseg.volumes.grid import Grid, checked_shape
from medseg.volumes.orientation import reorient_array
from medseg.volumes.plausible import check_resampling
from medseg.volumes.resampling import AxisMap, axis_matrix
from medseg.volumes.volume import Volume

_SLICES = 32  # computed at a time
_DIGITS = (
    9  # decimals that sums in double precision hold; whole numbers are not to lose a unit for their rounding
)
_NEGLIGIBLE = 1e-12  # smaller weights of a cubic spline are left out
_INT16_HALF = 1 << 14


def resampled_raw(image: Volume, settings: Preprocessing, where: str = "image") -> Volume:
    """Return an image in the orientation and at the spacing of a network, with intensities as in the file.

    Args:
        image: Image as read from its file.
        settings: Preprocessing with `resample_raw`.
        where: File or case, for messages.

    Returns:
        Whole numbers `(C, X, Y, Z)` on the network's grid; the voxels of the file if it has the spacing of the network.

    Raises:
        DataError: The file's spacing would result in an absurd number of voxels.
    """
    codes = settings.axcodes(image.grid)
    data, grid = reorient_array(image.data, image.grid.axcodes, codes), image.grid.reoriented(codes)
    # Files hold spacings in single precision.
    own = tuple(float(np.float32(value)) for value in grid.spacing)
    target = settings.target_spacing(own)
    if own == target:
        return replace(image, data=data, grid=grid)
    assert settings.resample_raw is not None
    zoom = [mine / wanted for mine, wanted in zip(own, target, strict=True)]
    shape = [max(1, round(n * factor)) for n, factor in zip(grid.shape, zoom, strict=True)]
    check_resampling(grid.shape, grid.spacing, shape, target, where)
    maps = [_centres_in_place(n, m) for n, m in zip(grid.shape, shape, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] /= zoom
    return replace(
        image, data=_whole_numbers(data, maps, settings.resample_raw), grid=Grid(checked_shape(shape), affine)
    )


def _centres_in_place(n_in: int, n_out: int) -> AxisMap:
    """Return the map that keeps the centres of the first and the last voxel in place."""
    return AxisMap(n_in, n_out, (n_in - 1) / (n_out - 1) if n_out > 1 else 1.0, 0.0)


def _whole_numbers(data: NDArray[Any], maps: Sequence[AxisMap], order: int) -> NDArray[np.signedinteger]:
    """Return an image `(C, X, Y, Z)` resampled some slices at a time, without the fractions of its intensities."""
    highest = max(abs(float(data.min())), abs(float(data.max())))
    # A spline may overshoot the range of the image; int32 is what TotalSegmentator takes for all images.
    dtype = np.int16 if highest < _INT16_HALF else np.int32
    result = np.empty((len(data), *(one.n_out for one in maps)), dtype)
    resample = _linear if order == 1 else _cubic
    for channel, image in zip(result, data, strict=True):
        for first in range(0, channel.shape[2], _SLICES):
            part = slice(first, first + _SLICES)
            channel[..., part] = np.trunc(resample(image, maps, part))
    return result


def _linear(image: NDArray[Any], maps: Sequence[AxisMap], part: slice) -> NDArray[np.float64]:
    """Return some slices of an image after linear interpolation, with the sums of SciPy in its order.

    Intensities lose their fraction next, and a value that rounding moves across a whole number would lose a unit.
    """
    corners: list[list[tuple[NDArray[np.intp], NDArray[np.float64]]]] = []
    for axis, axis_map in enumerate(maps):
        position = (np.arange(axis_map.n_out) * axis_map.scale)[part if axis == 2 else slice(None)]
        lower = np.minimum(np.floor(position).astype(np.intp), axis_map.n_in - 1)
        upper = np.minimum(lower + 1, axis_map.n_in - 1)
        below = 1 - (position - np.floor(position))
        corners.append([(lower, below), (upper, 1 - below)])
    result = np.zeros([len(axis[0][0]) for axis in corners])
    for (x, in_x), (y, in_y), (z, in_z) in product(*corners):
        values = image[..., z][:, y][x].astype(np.float64)
        values *= in_x[:, None, None]
        values *= in_y[:, None]
        values *= in_z
        result += values
    return result


def _cubic(image: NDArray[Any], maps: Sequence[AxisMap], part: slice) -> NDArray[np.float64]:
    """Return some slices of an image after interpolation by a cubic spline."""
    x, y, z = (axis_matrix(axis_map, 3) for axis_map in maps)
    rows = z[part]
    found = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
    needed = slice(int(found[0]), int(found[-1]) + 1)
    planes = np.moveaxis(image[..., needed], -1, 0).astype(np.float64)
    planes = np.matmul(np.matmul(x, planes), y.T)
    values = np.moveaxis(np.tensordot(rows[:, needed], planes, axes=1), 0, -1)
    return np.asarray(np.round(values, _DIGITS))


def nearest_label_target(
    prepared: Prepared, file: Volume, settings: Preprocessing, dtype: DTypeLike
) -> tuple[LabelTarget, tuple[NDArray[np.intp], ...]] | None:
    """Return an empty label map for the prediction of an image that was resampled raw.

    Args:
        prepared: The prepared image; its source is what `resampled_raw` returned.
        file: Image as read from its file.
        settings: Preprocessing with `resample_raw`.
        dtype: Integer type of the labels.

    Returns:
        Label map of background on the grid of the file, and for each of the network's axes the prepared voxel of each voxel of
        its view; None if no voxel of the file is nearest to one inside the box of the prepared image.
    """
    codes = settings.axcodes(file.grid)
    upright = file.grid.reoriented(codes)
    axes = zip(upright.shape, prepared.source.shape, prepared.start, prepared.shape, strict=True)
    parts = [_nearest(*one) for one in axes]
    if any(len(index) == 0 for _, index, _ in parts):
        return None
    data = np.zeros(file.grid.shape, dtype, order="F")
    volume = Volume(data[None], file.grid, "label", file.header)
    x, y, z = (box for box, _, _ in parts)
    maps = tuple(axis_map for _, _, axis_map in parts)
    return LabelTarget(volume, maps, None, codes, (x, y, z)), tuple(index for _, index, _ in parts)


def _nearest(n_file: int, n_all: int, start: int, n_box: int) -> tuple[slice, NDArray[np.intp], AxisMap]:
    """Return the voxels of the file whose nearest voxel is in a box, these nearest voxels, and the map between both."""
    back = _centres_in_place(n_all, n_file)
    # Without rounding, as SciPy, so that ties are decided in the same way.
    nearest = np.minimum(np.floor(np.arange(n_file) * back.scale + 0.5).astype(np.intp), n_all - 1)
    inside = np.flatnonzero((nearest >= start) & (nearest < start + n_box))
    first = int(inside[0]) if len(inside) else 0
    box = slice(first, first + len(inside))
    return box, nearest[box] - start, AxisMap(n_box, len(inside), back.scale, back.scale * first - start)


def with_channels(image: Volume, count: int) -> Volume:
    """Return an image of one channel as one with several equal channels, without a copy."""
    return replace(image, data=np.broadcast_to(image.data, (count, *image.data.shape[1:])))
