"""Augmentation of patches: nnU-Net's transforms, with all randomness from one generator per sample.

Rotation and scaling are applied when a patch is read (`extraction`), so that nothing is resampled twice. This module
draws their matrix, changes intensities and flips axes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg.data.patches.extraction import Patch
from medseg.data.settings import Augmentation, Range


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


def augment(patch: Patch, settings: Augmentation, rng: np.random.Generator) -> Patch:
    """Change the intensities of a patch and flip its axes.

    Args:
        patch: Its image holds normalised intensities.
        settings: Probabilities and ranges.
        rng: Generator of the sample; the result depends on nothing else.

    Returns:
        A patch of the same shapes, in contiguous memory.
    """
    image = _change_intensity(patch.image, settings, rng)
    dims = image.ndim - 1
    axes = range(dims) if settings.mirror_axes is None else [a for a in settings.mirror_axes if a < dims]
    flipped = [axis + 1 for axis in axes if rng.random() < 0.5]
    changed = replace(patch, image=image)
    if flipped:
        changed = changed.map(lambda tensor: tensor.flip(flipped))
    return changed.map(lambda tensor: tensor.contiguous())


def _change_intensity(image: Tensor, s: Augmentation, rng: np.random.Generator) -> Tensor:
    if rng.random() < s.noise_p:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + torch.from_numpy(noise) * rng.uniform(*s.noise_std)
    if rng.random() < s.blur_p:
        image = _some_channels(image, rng, lambda c: _blurred(c, rng.uniform(*s.blur_sigma)))
    if rng.random() < s.brightness_p:
        image = image * _per_channel(image, s.brightness, rng)
    if rng.random() < s.contrast_p:
        image = _contrasted(image, _per_channel(image, s.contrast, rng))
    if rng.random() < s.low_resolution_p:
        image = _some_channels(
            image, rng, lambda c: _coarsened(c, rng.uniform(*s.low_resolution), s.dummy_2d_axis)
        )
    if rng.random() < s.gamma_inverted_p:
        image = -_gamma_corrected(-image, _per_channel(image, s.gamma, rng))
    if rng.random() < s.gamma_p:
        image = _gamma_corrected(image, _per_channel(image, s.gamma, rng))
    return image


def _rotation(dims: int, first: int, second: int, angle: float) -> np.ndarray:
    matrix = np.eye(dims)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _per_channel(image: Tensor, bounds: Range, rng: np.random.Generator) -> Tensor:
    """Return one factor per channel; below and above 1 are equally likely for any bounds."""
    low, high = bounds
    factors = [
        rng.uniform(low, min(high, 1))
        if low < 1 and (high <= 1 or rng.random() < 0.5)
        else rng.uniform(max(low, 1), high)
        for _ in range(len(image))
    ]
    return torch.tensor(factors, dtype=image.dtype).view(-1, *[1] * (image.ndim - 1))


def _some_channels(image: Tensor, rng: np.random.Generator, change) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.stack([change(channel) if rng.random() < 0.5 else channel for channel in image])


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, `(c, 1, ...)`.

    NumPy computes them because the last digit of a sum in torch depends on the number of threads, and thus of workers.
    """
    values, axes = image.numpy(), tuple(range(1, image.ndim))
    mean, std = values.mean(axes, keepdims=True), values.std(axes, keepdims=True)
    return torch.from_numpy(mean), torch.from_numpy(std)


def _bounds(image: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(1, image.ndim))
    return image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)


def _contrasted(image: Tensor, factor: Tensor) -> Tensor:
    mean, _ = _moments(image)
    return torch.clamp((image - mean) * factor + mean, *_bounds(image))


def _gamma_corrected(image: Tensor, gamma: Tensor) -> Tensor:
    mean, std = _moments(image)
    low, high = _bounds(image)
    changed = ((image - low) / (high - low).clamp_min(1e-7)) ** gamma
    new_mean, new_std = _moments(changed)
    return (changed - new_mean) / new_std.clamp_min(1e-7) * std + mean


def _blurred(channel: Tensor, sigma: float) -> Tensor:
    """Blur `(*spatial)` by a Gaussian, one axis at a time, with reflected borders."""
    radius = max(1, round(3 * sigma))
    positions = torch.arange(-radius, radius + 1, dtype=channel.dtype)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(channel.ndim):
        if channel.shape[axis] <= radius:
            continue
        moved = channel.movedim(axis, -1)
        flat = functional.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="reflect")
        channel = functional.conv1d(flat, kernel.view(1, 1, -1)).view(moved.shape).movedim(-1, axis)
    return channel.contiguous()


def _coarsened(channel: Tensor, factor: float, kept_axis: int | None) -> Tensor:
    shape = channel.shape
    small = [n if axis == kept_axis else max(1, round(n * factor)) for axis, n in enumerate(shape)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[channel.ndim]
    coarse = functional.interpolate(channel[None, None], size=small, mode="nearest-exact")
    return functional.interpolate(coarse, size=shape, mode=mode, align_corners=False)[0, 0]
