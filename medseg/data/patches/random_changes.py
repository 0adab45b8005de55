"""The random changes of one patch, drawn before they are applied.

Drawing takes microseconds and needs no voxels. A worker can therefore draw, and another device apply, without a
difference in the random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.data.settings import Augmentation, Range


@dataclass(frozen=True)
class Changes:
    """Changes of the intensities of one patch, and the axes along which it is flipped; None is no change.

    Attributes:
        noise: Noise `(c, *spatial)` of standard deviation 1.
        noise_std: Standard deviation of the noise, in normalised intensities.
        blur: Standard deviation of the blur in voxels per channel; None for channels that stay.
        brightness: Factor per channel.
        contrast: Factor per channel.
        low_resolution: Zoom factor per channel; None for channels that stay.
        kept_axis: Axis that keeps its resolution; None for none.
        gamma_inverted: Exponent per channel, of the negated image.
        gamma: Exponent per channel.
        flipped: Flipped axes of tensors `(c, *spatial)`.
        emptied: Channels that become 0: those that the case lacks, and those that are dropped.
    """

    noise: Tensor | None = None
    noise_std: float = 0.0
    blur: tuple[float | None, ...] | None = None
    brightness: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    low_resolution: tuple[float | None, ...] | None = None
    kept_axis: int | None = None
    gamma_inverted: tuple[float, ...] | None = None
    gamma: tuple[float, ...] | None = None
    flipped: tuple[int, ...] = ()
    emptied: tuple[int, ...] = ()


def draw_affine(settings: Augmentation, dims: int, rng: np.random.Generator) -> np.ndarray | None:
    """Draw a random rotation and scaling.

    Args:
        settings: Probabilities and ranges.
        dims: Number of axes, 2 or 3.
        rng: Generator of the sample.

    Returns:
        Matrix `(dims, dims)`, or None for no change. It maps the offset of a voxel from the centre of the patch to the
        offset at which its value is read from the case.
    """
    matrix = np.eye(dims)
    changed = False
    if rng.random() < settings.rotate_p:
        limit = math.radians(settings.rotate_degrees)
        planes = [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]
        for first, second in planes:
            matrix = _rotation(dims, first, second, rng.uniform(-limit, limit)) @ matrix
        changed = True
    if rng.random() < settings.scale_p:
        matrix = matrix * rng.uniform(*settings.scale)
        changed = True
    return matrix if changed else None


def draw_changes(
    settings: Augmentation, shape: Sequence[int], rng: np.random.Generator, absent: Sequence[int] = ()
) -> Changes:
    """Draw all changes of a patch except rotation and scaling.

    Args:
        settings: Probabilities and ranges.
        shape: Shape `(c, *spatial)` of its image.
        rng: Generator of the sample; the result depends on nothing else.
        absent: Indices of channels that the case lacks.

    Returns:
        The changes.
    """
    s, channels, dims = settings, shape[0], len(shape) - 1
    noise, noise_std = None, 0.0
    if rng.random() < s.noise_p:
        noise = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
        noise_std = rng.uniform(*s.noise_std)
    # Keyword arguments are evaluated in order, which is that of the random numbers.
    return Changes(
        noise=noise,
        noise_std=noise_std,
        blur=_some_channels(channels, s.blur_sigma, rng) if rng.random() < s.blur_p else None,
        brightness=_per_channel(channels, s.brightness, rng) if rng.random() < s.brightness_p else None,
        contrast=_per_channel(channels, s.contrast, rng) if rng.random() < s.contrast_p else None,
        low_resolution=_some_channels(channels, s.low_resolution, rng)
        if rng.random() < s.low_resolution_p
        else None,
        kept_axis=s.dummy_2d_axis,
        gamma_inverted=_per_channel(channels, s.gamma, rng) if rng.random() < s.gamma_inverted_p else None,
        gamma=_per_channel(channels, s.gamma, rng) if rng.random() < s.gamma_p else None,
        flipped=_flipped(s, dims, rng),
        emptied=_emptied(channels, s.drop_channel_p, absent, rng),
    )


def _rotation(dims: int, first: int, second: int, angle: float) -> np.ndarray:
    matrix = np.eye(dims)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _per_channel(channels: int, bounds: Range, rng: np.random.Generator) -> tuple[float, ...]:
    """Return one factor per channel; below and above 1 are equally likely for any bounds."""
    low, high = bounds
    return tuple(
        rng.uniform(low, min(high, 1))
        if low < 1 and (high <= 1 or rng.random() < 0.5)
        else rng.uniform(max(low, 1), high)
        for _ in range(channels)
    )


def _some_channels(channels: int, bounds: Range, rng: np.random.Generator) -> tuple[float | None, ...]:
    return tuple(rng.uniform(*bounds) if rng.random() < 0.5 else None for _ in range(channels))


def _emptied(
    channels: int, probability: float, absent: Sequence[int], rng: np.random.Generator
) -> tuple[int, ...]:
    """Return the channels that become 0; one of the channels of the case stays."""
    if not probability:
        return tuple(absent)
    present = [channel for channel in range(channels) if channel not in absent]
    dropped = [channel for channel in present if rng.random() < probability]
    if len(dropped) == len(present):
        dropped.pop(int(rng.integers(len(dropped))))
    return tuple(sorted((*absent, *dropped)))


def _flipped(settings: Augmentation, dims: int, rng: np.random.Generator) -> tuple[int, ...]:
    chosen = settings.mirror_axes
    axes = range(dims) if chosen is None else [axis for axis in chosen if axis < dims]
    return tuple(axis + 1 for axis in axes if rng.random() < 0.5)
