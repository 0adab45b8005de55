"""What does not have to be predicted: air in CT, and windows with constant background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.data.preprocessing.normalize import STD_FLOOR, Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.volumes.grid import Grid

BRIGHTEST_AIR_HU = -850.0  # a window with nothing brighter contains only air: lungs show vessels
BODY_HU = -500.0
MARGIN_MM = 20.0  # around the body
SMALLEST_BODY_MM3 = 1000.0  # components of less than a cubic centimetre are noise
_COARSE_MM = 4.0


def empty_limits(preprocessing: Preprocessing, lowest: Sequence[float]) -> tuple[float, ...]:
    """Return the normalised intensity of each channel up to which a window is empty.

    A window is empty if no channel exceeds its lowest intensity in the image, such as the zeros around a brain. A channel
    of CT is also empty up to the intensity of air, or up to the intensity at which it was clipped if that is higher.

    Args:
        preprocessing: Preprocessing of the image, which says how its channels were normalised.
        lowest: Lowest normalised intensity of each channel of the whole image.

    Returns:
        One limit per channel; a window is empty if no channel exceeds its limit.
    """
    return tuple(_limit(channel, low) for channel, low in zip(preprocessing.channels, lowest, strict=True))


def _limit(channel: Normalization, lowest: float) -> float:
    """Return the normalised intensity up to which a channel is empty."""
    if channel.method != "ct":
        return lowest
    level = BRIGHTEST_AIR_HU if channel.low is None else max(BRIGHTEST_AIR_HU, channel.low)
    return max(lowest, (level - channel.mean) / max(channel.std, STD_FLOOR) + 1e-6)


def body_box(data: NDArray[Any], grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the box around everything in a CT that is not air, with a margin.

    Components of less than a cubic centimetre are ignored; a table and arms next to the body are included.

    Args:
        data: Intensities `(C, X, Y, Z)` in HU.
        grid: Grid of the image.

    Returns:
        Start and shape of the box in voxels, or None if there is only air.
    """
    steps = [
        min(size, max(1, int(_COARSE_MM // spacing)))  # so that short axes have a voxel in the sample, too
        for size, spacing in zip(grid.shape, grid.spacing, strict=True)
    ]
    coarse = (data[(slice(None), *(slice(step // 2, None, step) for step in steps))] > BODY_HU).any(axis=0)
    parts, count = ndimage.label(coarse)
    if not count:
        return None
    volume = np.bincount(parts.ravel())[1:] * grid.voxel_volume * float(np.prod(steps))
    boxes = [
        box
        for box, size in zip(ndimage.find_objects(parts), volume, strict=True)
        if size >= SMALLEST_BODY_MM3
    ]
    if not boxes:
        return None
    start, stop = [], []
    for axis, (step, spacing, size) in enumerate(zip(steps, grid.spacing, grid.shape, strict=True)):
        margin = step + round(MARGIN_MM / spacing)
        start.append(max(0, min(box[axis].start for box in boxes) * step - margin))
        stop.append(min(size, max(box[axis].stop for box in boxes) * step + margin))
    return tuple(start), tuple(e - s for s, e in zip(start, stop, strict=True))
