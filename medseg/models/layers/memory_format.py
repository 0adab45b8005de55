"""Memory layout: channels-last in, channels-last out.

On CPUs a convolution in channels-last is up to several times as fast, but one operation that answers in the default
layout costs two copies at every following convolution. So every block here hands back the layout it was given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_format(spatial_dims: int) -> torch.memory_format:
    """The channels-last format of a batch with 2 or 3 spatial axes."""
    return _FORMATS[spatial_dims + 2]


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` (n c *spatial) lies in channels-last; decided by its strides when it has one channel."""
    return x.dim() in _FORMATS and x.stride(1) == 1 and x.is_contiguous(memory_format=_FORMATS[x.dim()])


def match_memory_format(x: Tensor, reference: Tensor) -> Tensor:
    """Return `x` in the layout of `model`; copies only when it lies otherwise."""
    if is_channels_last(reference):
        # `to`, not `contiguous`: it also turns the strides of a tensor with one channel.
        return x if is_channels_last(x) else x.to(memory_format=_FORMATS[x.dim()])
    return x.contiguous()


def match_model_format(x: Tensor, model: nn.Module) -> Tensor:
    """Return `x` in channels-last if the convolution weights of `model` are in channels-last, else as it is."""
    for weight in model.parameters():
        # A kernel with one tap lies in both layouts at once, and says nothing.
        if weight.dim() == x.dim() and weight.shape[2:].numel() > 1:
            return match_memory_format(x, weight) if is_channels_last(weight) else x
    return x


def pad_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Grow `x` (n c *spatial) at the far end of each axis to `size` by repeating its last voxels.

    Repetition, not zeros: an edge to zero would be a structure that no image has, and would move the mean and
    spread that instance norm sees.
    """
    if tuple(x.shape[2:]) == size:
        return x
    for axis, n in enumerate(size, start=2):
        if x.shape[axis] != n:
            # Clamped indices instead of F.pad, which has no replication for integers and leaves bfloat16.
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
    """The least multiples of `divisor` that are not below `size`, per axis."""
    return tuple(-(-n // d) * d for n, d in zip(size, divisor, strict=True))
