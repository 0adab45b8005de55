"""Augmentation of patches: nnU-Net's transforms, on the device of the patch.

Rotation and scaling are applied when a patch is interpolated (`extraction`), so that nothing is resampled twice. This
module changes intensities and flips axes. On a CUDA device, no function waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg.data.patches.device_interpolation import on_host
from medseg.data.patches.extraction import Patch
from medseg.data.patches.random_changes import Changes, draw_changes
from medseg.data.settings import Augmentation


def augment(patch: Patch, settings: Augmentation, rng: np.random.Generator) -> Patch:
    """Change the intensities of a patch and flip its axes at random.

    Args:
        patch: Its image holds normalised intensities.
        settings: Probabilities and ranges.
        rng: Generator of the sample; the result depends on nothing else.

    Returns:
        A patch of the same shapes, in contiguous memory.
    """
    return apply_changes(patch, draw_changes(settings, patch.image.shape, rng))


def apply_changes(patch: Patch, changes: Changes) -> Patch:
    """Apply changes that have been drawn.

    Afterwards, voxels outside the mask of a masked normalisation are 0 again, as in nnU-Net and as in prediction; so are the
    channels that the case lacks.

    The result on another device differs by rounding: the moments of an image, and sums of several weights.

    Args:
        patch: Its image holds normalised intensities. Voxels that are `outside` become 0.
        changes: The changes; noise is on the device of the patch.

    Returns:
        A patch of the same shapes, in contiguous memory.
    """
    image = _change_intensity(patch.image, changes)
    if patch.outside is not None:
        image = image.masked_fill(patch.outside, 0)
    if changes.emptied:
        image = image.clone()
        for channel in changes.emptied:
            image[channel].zero_()
    changed = replace(patch, image=image, outside=None)
    if changes.flipped:
        changed = changed.map(lambda tensor: tensor.flip(changes.flipped))
    return changed.map(lambda tensor: tensor.contiguous())


def _change_intensity(image: Tensor, changes: Changes) -> Tensor:
    if changes.noise is not None:
        image = image + changes.noise * changes.noise_std
    if changes.blur is not None:
        image = _some_channels(image, changes.blur, _blurred)
    if changes.brightness is not None:
        image = image * _column(changes.brightness, image)
    if changes.contrast is not None:
        image = _contrasted(image, _column(changes.contrast, image))
    if changes.low_resolution is not None:
        kept = changes.kept_axis
        image = _some_channels(image, changes.low_resolution, lambda c, factor: _coarsened(c, factor, kept))
    if changes.gamma_inverted is not None:
        image = -_gamma_corrected(-image, _column(changes.gamma_inverted, image))
    if changes.gamma is not None:
        image = _gamma_corrected(image, _column(changes.gamma, image))
    return image


def _column(factors: Sequence[float], image: Tensor) -> Tensor:
    """Return factors as a tensor `(c, 1, ...)` on the device of the image.

    They reach the device as arguments of kernels: a copy from ordinary memory would wait for it.
    """
    column = torch.empty((len(factors), *[1] * (image.ndim - 1)), dtype=image.dtype, device=image.device)
    for number, factor in enumerate(factors):
        column[number].fill_(factor)
    return column


def _some_channels(
    image: Tensor, values: Sequence[float | None], change: Callable[[Tensor, float], Tensor]
) -> Tensor:
    channels = zip(image, values, strict=True)
    return torch.stack([channel if value is None else change(channel, value) for channel, value in channels])


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, `(c, 1, ...)`.

    On the processor NumPy computes them, because the last digit of a sum in torch depends on the number of threads, and
    thus of workers.
    """
    axes = tuple(range(1, image.ndim))
    if not on_host(image):
        std, mean = torch.std_mean(image, axes, correction=0, keepdim=True)
        return mean, std
    values = image.numpy()
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
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(channel.ndim):
        if channel.shape[axis] <= radius:
            continue
        moved = channel.movedim(axis, -1)
        flat = functional.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="reflect")
        channel = _convolved(flat, kernel).view(moved.shape).movedim(-1, axis)
    return channel.contiguous()


def _convolved(lines: Tensor, kernel: Tensor) -> Tensor:
    """Return lines `(n, 1, length)` convolved with a kernel that is on the processor."""
    if on_host(lines):
        return functional.conv1d(lines, kernel.view(1, 1, -1))
    # On CUDA devices, cuDNN would try its algorithms for each new kernel and may use TF32.
    length = lines.shape[-1] - len(kernel) + 1
    parts = [lines.narrow(-1, start, length) * weight for start, weight in enumerate(kernel.tolist())]
    return torch.stack(parts).sum(0)


def _coarsened(channel: Tensor, factor: float, kept_axis: int | None) -> Tensor:
    shape = channel.shape
    small = [n if axis == kept_axis else max(1, round(n * factor)) for axis, n in enumerate(shape)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[channel.ndim]
    coarse = functional.interpolate(channel[None, None], size=small, mode="nearest-exact")
    return functional.interpolate(coarse, size=shape, mode=mode, align_corners=False)[0, 0]
