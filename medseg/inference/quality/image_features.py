"""Properties of an image that distinguish a usual image from an unusual one, whatever the scale of its intensities.

All are computed from a regular sample, so that they take little time and memory for large images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.volumes.volume import Volume

Features = dict[str, dict[str, float]]
"""Values of a case by kind, such as ``noise``, and by what they were measured on: a channel, an axis or a label."""

_SAMPLED_VOXELS = 100_000
_LINE_VOXELS = 200_000
_LEAST_ALONG_AXIS = 5  # voxels; shorter axes have no neighbours to compare
_LOW, _HIGH = 2.0, 98.0  # percentiles between which intensities count as usual
_DIGITS = 6


@dataclass(frozen=True)
class IntensitySample:
    """The intensities of an image at a regular sample of its voxels, as ranks.

    Attributes:
        steps: The sample along each of the three axes.
        ranks: For each channel and sampled voxel `(C, x, y, z)`, the fraction of voxels that are darker, 0 to 1.
    """

    steps: tuple[slice, slice, slice]
    ranks: NDArray[np.float32]

    @classmethod
    def from_image(cls, image: Volume) -> IntensitySample:
        """Take the sample of an image.

        Args:
            image: Image `(C, X, Y, Z)` as read from its file.

        Returns:
            The ranks of about 100,000 voxels per channel; voxels that are not finite have the lowest.
        """
        x, y, z = _steps(image.grid.shape, _SAMPLED_VOXELS)
        values = np.nan_to_num(image.data[:, x, y, z].astype(np.float64), nan=-np.inf)
        ranks = [_ranks(channel) / channel.size for channel in values]
        return cls((x, y, z), np.stack(ranks).astype(np.float32))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value, from 1; equal values have the mean of their ranks.

    This is `scipy.stats.rankdata`, without the second that the import of `scipy.stats` takes in each process that predicts.
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(means[places].reshape(values.shape))


def image_features(image: Volume, names: Sequence[str]) -> Features:
    """Measure an image.

    Args:
        image: Image `(C, X, Y, Z)` as read from its file.
        names: Names of the channels.

    Returns:
        By kind and then by channel, without what cannot be measured, as in a constant channel:

        - ``brightness``: place of the mean between the 2nd and the 98th percentile, 0 to 1.
        - ``edges``: correlation of intensity and absolute difference between neighbours, -1 to 1. Borders of bright structures are
          usually not like those of dark ones, so that it changes its sign if dark and bright are exchanged.
        - ``contrast``: distance between the quartiles as a fraction of that between the 2nd and the 98th percentile.
        - ``noise``: median second difference between neighbours, as a fraction of the same distance.
        - ``sharpness``: mean squared difference of neighbours, relative to that of voxels two apart; 0.25 if blurred, 1 if
          nothing but noise.
        - ``constant part``: fraction of voxels with the most frequent value.
        - ``one-sidedness``: largest difference between the means of the two halves of the image along an axis.
    """
    found: Features = {}
    for name, channel in zip(names, image.data, strict=True):
        for kind, value in _channel_features(channel):
            if math.isfinite(value):
                found.setdefault(kind, {})[name] = float(f"{value:.{_DIGITS}g}")
    return found


def _channel_features(channel: NDArray[Any]) -> Iterator[tuple[str, float]]:
    sample = np.asarray(channel[_steps(channel.shape, _SAMPLED_VOXELS)], dtype=np.float64)
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return
    _, counts = np.unique(finite, return_counts=True)
    yield "constant part", counts.max() / finite.size
    low, first, third, high = np.percentile(finite, (_LOW, 25, 75, _HIGH))
    width = high - low
    if width <= 0:
        return
    yield "contrast", (third - first) / width
    usual = np.clip(np.nan_to_num(sample, nan=low, posinf=high, neginf=low), low, high)
    yield "brightness", (float(usual.mean()) - low) / width
    yield "one-sidedness", _one_sidedness((usual - low) / width)
    second, ratios, correlations = [], [], []
    for axis, size in enumerate(channel.shape):
        if size >= _LEAST_ALONG_AXIS:
            lines = _lines(channel, axis, low, high)
            near, far = np.diff(lines), lines[:, 2:] - lines[:, :-2]
            second.append(np.abs(np.diff(near))[far != 0])
            if np.any(far):
                ratios.append(float(np.mean(near**2) / np.mean(far**2)))
                correlations.append(_correlation(lines[:, 1:] + lines[:, :-1], np.abs(near)))
    if ratios:
        yield "noise", float(np.median(np.concatenate(second))) / width
        yield "sharpness", float(np.exp(np.mean(np.log(ratios))))
        yield "edges", float(np.mean(correlations))


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Pearson's correlation; 0 if one of both is constant."""
    spread = float(first.std() * second.std())
    return float(np.mean((first - first.mean()) * (second - second.mean()))) / spread if spread > 0 else 0.0


def _one_sidedness(values: NDArray[np.float64]) -> float:
    """Return the largest difference of means between the halves of a volume with values from 0 to 1."""
    differences = [0.0]
    for axis, size in enumerate(values.shape):
        if size > 1:
            first, last = np.array_split(values, 2, axis)
            differences.append(abs(float(first.mean() - last.mean())))
    return max(differences)


def _lines(channel: NDArray[Any], axis: int, low: float, high: float) -> NDArray[np.float64]:
    """Return lines `(n, size)` of all voxels along one axis, clipped to the usual intensities."""
    across = [size for other, size in enumerate(channel.shape) if other != axis]
    step = max(1, math.ceil(math.sqrt(math.prod(channel.shape) / _LINE_VOXELS)))
    steps = iter([slice(None, None, min(step, max(1, size // 4))) for size in across])
    place = tuple(slice(None) if other == axis else next(steps) for other in range(channel.ndim))
    lines = np.moveaxis(channel[place], axis, -1).reshape(-1, channel.shape[axis]).astype(np.float64)
    return np.clip(np.nan_to_num(lines, nan=low, posinf=high, neginf=low), low, high)


def _steps(shape: Sequence[int], wanted: int) -> tuple[slice, slice, slice]:
    """Return steps along the axes with which about `wanted` voxels are sampled, and at least 8 along each axis."""
    step = max(1, math.ceil((math.prod(shape) / wanted) ** (1 / 3)))
    x, y, z = (slice(None, None, min(step, max(1, size // 8))) for size in shape)
    return x, y, z
