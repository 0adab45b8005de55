"""Memory format: every block returns the memory format of its input.

On CPUs, convolutions in channels-last are up to several times as fast. A single operation that returns the default
format would cost two copies at every following convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_format(spatial_dims: int) -> torch.memory_format:
    """Return the channels-last format of a batch with 2 or 3 spatial axes."""
    return _FORMATS[spatial_dims + 2]


def is_channels_last(x: Tensor) -> bool:
    """Return whether `x` (n c *spatial) is in channels-last; with one channel, the strides decide."""
    return x.dim() in _FORMATS and x.stride(1) == 1 and x.is_contiguous(memory_format=_FORMATS[x.dim()])


def match_memory_format(x: Tensor, reference: Tensor) -> Tensor:
    """Return `x` in the memory format of `reference`, copied only if it differs."""
    if is_channels_last(reference):
        # `to`, not `contiguous`: it also changes the strides of a tensor with one channel.
        return x if is_channels_last(x) else x.to(memory_format=_FORMATS[x.dim()])
    return x.contiguous()


def match_model_format(x: Tensor, model: nn.Module) -> Tensor:
    """Return `x` in channels-last if the convolution weights of `model` are, else unchanged."""
    for weight in model.parameters():
        # A kernel of one element is in both formats at once.
        if weight.dim() == x.dim() and weight.shape[2:].numel() > 1:
            return match_memory_format(x, weight) if is_channels_last(weight) else x
    return x


def pad_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pad `x` (n c *spatial) at the far end of each axis to `size` by repeating its last voxels.

    Zeros would create an edge that no image has, and would change the mean and standard deviation that instance norm
    computes.
    """
    if tuple(x.shape[2:]) == size:
        return x
    for axis, n in enumerate(size, start=2):
        if x.shape[axis] != n:
            # Clamped indices instead of F.pad, which cannot replicate integers and does not keep bfloat16.
            index = torch.arange(n, device=x.device).clamp(max=x.shape[axis] - 1)
            x = match_memory_format(x.index_select(axis, index), x)
    return x


def crop_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the view of `x` (n c *spatial) that begins at its first voxel and has `size`."""
    if tuple(x.shape[2:]) == size:
        return x
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def round_up(size: tuple[int, ...], divisor: tuple[int, ...]) -> tuple[int, ...]:
    """Return the smallest multiples of `divisor` that are at least `size`, per axis."""
    return tuple(-(-n // d) * d for n, d in zip(size, divisor, strict=True))
