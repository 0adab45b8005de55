"""Volumes for the viewer: reduced until they fit into a number of bytes, and encoded as compressed NIfTI."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.viz.slice_images import is_colour
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

Factors = tuple[int, int, int]

MOST_VOXELS = 2**25  # of one volume: what graphics processors of ordinary computers hold with all overlays
_SAMPLE = 2**21  # voxels that are compressed to estimate the size of all
_LEVEL = 6
_LABEL_INTENT = 1002
_FIRST_VOXEL = 352  # bytes of a NIfTI-1 header without extensions


def fitting_factors(image: Volume, max_bytes: int, *, rounded: bool = False) -> Factors:
    """Return the factors by which the axes have to be reduced so that an image fits into a number of bytes.

    The axis with the smallest voxels is reduced first, so that voxels become more nearly cubic.

    Args:
        image: The image.
        max_bytes: Bytes for the compressed image.
        rounded: Whether fractions are rounded, see `packed_nifti`.

    Returns:
        One factor per axis; ``(1, 1, 1)`` if the image fits without reduction.
    """
    per_voxel = _compressed_bytes_per_voxel(image, rounded)
    most = min(MOST_VOXELS, max(1, int(max_bytes / per_voxel)))
    factors = [1, 1, 1]
    shape, spacing = image.grid.shape, image.grid.spacing
    while math.prod(_reduced_shape(shape, factors)) > most:
        reducible = [axis for axis in range(3) if factors[axis] < shape[axis]]
        axis = min(reducible, key=lambda axis: spacing[axis] * factors[axis])
        factors[axis] += 1
    return factors[0], factors[1], factors[2]


def reduce_image(image: Volume, factors: Factors) -> Volume:
    """Reduce an image; each voxel of the result is the mean of a block of voxels.

    Args:
        image: The image.
        factors: Voxels of a block along each axis. Blocks at the end of an axis repeat its last voxels.

    Returns:
        The reduced image, of the same type; the image itself if the factors are 1.
    """
    if factors == (1, 1, 1):
        return image
    data = image.data
    for axis, factor in enumerate(factors, start=1):
        if factor > 1:
            data = _block_means(data, axis, factor)
    if image.data.dtype.kind in "iub":
        data = np.rint(data)
    return Volume(data.astype(image.data.dtype), _reduced_grid(image.grid, factors), image.kind)


def reduce_labels(labels: Volume, factors: Factors) -> Volume:
    """Reduce a label map; each voxel of the result is the voxel of a block that is nearest to its centre.

    Args:
        labels: The label map.
        factors: Voxels of a block along each axis.

    Returns:
        The reduced label map.
    """
    index = [
        np.minimum(np.arange(0, n, factor) + factor // 2, n - 1)
        for n, factor in zip(labels.grid.shape, factors, strict=True)
    ]
    x, y, z = np.ix_(*index)
    data = labels.data[:, x, y, z]
    return Volume(data, _reduced_grid(labels.grid, factors), labels.kind)


def packed_nifti(
    data: NDArray[Any], grid: Grid, *, rounded: bool = False, labels: bool = False, steps: int = 2**16 - 1
) -> bytes:
    """Return voxels as the bytes of a compressed NIfTI file without names or other text.

    Args:
        data: Voxels `(X, Y, Z)`, or `(X, Y, Z, 3)` of bytes for colours.
        grid: Their grid.
        rounded: Whether fractions are rounded to `steps` steps between the smallest and the largest, which takes half the
            bytes, or less.
        labels: Whether voxels are labels; the header then says so, without which niivue draws no outlines.
        steps: Number of steps, at most 65,535.

    Returns:
        The file's bytes, compressed by gzip, the same for the same voxels.
    """
    import nibabel

    scale, shift = 1.0, 0.0
    if data.ndim == 4:
        stored = np.ascontiguousarray(data).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    elif rounded and has_fractions(data):
        shift = float(data.min())
        scale = (float(data.max()) - shift) / steps or 1.0
        stored = np.rint((data - shift) / scale).astype(np.uint8 if steps < 2**8 else np.uint16)
    else:
        stored = data.astype(_storage_type(data))
    header = nibabel.nifti1.Nifti1Header(endianness="<")
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_sform(np.asarray(grid.affine, np.float64), code="scanner")
    header.set_zooms(grid.spacing)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = _FIRST_VOXEL, b"n+1"
    header["intent_code"] = _LABEL_INTENT if labels else 0
    header["scl_slope"], header["scl_inter"] = scale, shift
    lead = header.binaryblock.ljust(_FIRST_VOXEL, b"\0")
    voxels = stored.astype(stored.dtype.newbyteorder("<")).tobytes(order="F")
    return gzip.compress(lead + voxels, compresslevel=_LEVEL, mtime=0)


def has_fractions(data: NDArray[Any]) -> bool:
    """Return whether voxels are finite and some are no whole numbers."""
    return bool(_storage_type(data) == np.float32 and np.isfinite(data).all())


def _storage_type(data: NDArray[Any]) -> np.dtype[Any]:
    """Return the smallest type that holds the voxels exactly; float32 for floats that are not whole numbers."""
    low, high = (float(data.min()), float(data.max())) if data.size else (0.0, 0.0)
    whole = data.dtype.kind in "iub" or (
        math.isfinite(low) and math.isfinite(high) and bool((data == np.rint(data)).all())
    )
    if whole:
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            limits = np.iinfo(kind)
            if limits.min <= low and high <= limits.max:
                return np.dtype(kind)
    return np.dtype(np.float32)


def _compressed_bytes_per_voxel(image: Volume, rounded: bool) -> float:
    """Estimate the compressed bytes per voxel, of all channels, from slices at even distances along the longest axis."""
    axis = 1 + int(np.argmax(image.grid.shape))
    step = max(1, image.data[0].size // _SAMPLE)
    slices: NDArray[Any] = np.moveaxis(image.data, axis, 1)[:, step // 2 % image.data.shape[axis] :: step]
    if is_colour(image):
        slices = np.moveaxis(slices, 0, -1)[None]
    shape = slices.shape[1:4]
    packed = sum(len(packed_nifti(channel, Grid.from_spacing(shape), rounded=rounded)) for channel in slices)
    return packed / math.prod(shape)


def _reduced_shape(shape: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // factor) for n, factor in zip(shape, factors, strict=True))


def _reduced_grid(grid: Grid, factors: Factors) -> Grid:
    affine = np.asarray(grid.affine, np.float64).copy()
    affine[:3, 3] += affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    affine[:3, :3] *= factors
    shape = _reduced_shape(grid.shape, factors)
    return Grid((shape[0], shape[1], shape[2]), affine, grid.in_pixels)


def _block_means(data: NDArray[Any], axis: int, factor: int) -> NDArray[Any]:
    missing = -data.shape[axis] % factor
    widths = [(0, missing if a == axis else 0) for a in range(data.ndim)]
    padded = np.pad(data, widths, mode="edge")
    blocks = (*padded.shape[:axis], padded.shape[axis] // factor, factor, *padded.shape[axis + 1 :])
    means: NDArray[Any] = padded.reshape(blocks).mean(axis=axis + 1, dtype=np.float32)
    return means
