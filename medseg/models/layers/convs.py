"""Convolutions by number of spatial axes, with sizes as one tuple per axis."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layers.memory_format import is_channels_last


class PointwiseConv3d(nn.Conv3d):
    """A 1×1×1 convolution, computed as a matrix product where that gives the same numbers faster.

    In float32 on one CPU thread, PyTorch has no channels-last kernel for this convolution. Its fallback takes 4 to 14
    times as long as the matrix product (measured with PyTorch 2.14, 32 and 64 channels, 64³ voxels) and returns the
    default memory format.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c x y z) to (n c' x y z) in the same memory format."""
        slow = x.device.type == "cpu" and (torch.get_num_threads() == 1 or self.in_channels == 1)
        if slow and is_channels_last(x) and not torch.is_autocast_enabled("cpu"):
            return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        return super().forward(x)


def conv_nd(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, ...] | None = None,
    *,
    stride: tuple[int, ...] | None = None,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Module:
    """Return a padded convolution: (n c *spatial) to (n c' *ceil(spatial/stride)).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd kernel size, one number per axis; None for 1.
        stride: Stride, one number per axis; None for 1.
        dilation: Distance between neighbouring elements of the kernel, in voxels.
        groups: Number of channel groups that are convolved separately.
        bias: Whether a constant per channel is added.

    Returns:
        The convolution, padded so that only the stride changes the size.
    """
    kernel = kernel_size or (1,) * spatial_dims
    point = set(kernel) == {1} and (stride is None or set(stride) == {1}) and groups == 1
    make: Any = nn.Conv2d if spatial_dims == 2 else PointwiseConv3d if point else nn.Conv3d
    conv: nn.Module = make(
        in_channels,
        out_channels,
        kernel,
        stride or 1,
        padding=tuple((k - 1) // 2 * dilation for k in kernel),
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    return conv


def patch_conv_nd(
    spatial_dims: int, in_channels: int, out_channels: int, stride: tuple[int, ...], *, bias: bool = True
) -> nn.Module:
    """Return a convolution with kernel = stride, without overlap: (n c *spatial) to (n c' *spatial/stride)."""
    if set(stride) == {1}:
        return conv_nd(spatial_dims, in_channels, out_channels, bias=bias)
    make: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    conv: nn.Module = make(in_channels, out_channels, stride, stride, bias=bias)
    return conv


def conv_transpose_nd(
    spatial_dims: int, in_channels: int, out_channels: int, stride: tuple[int, ...], *, bias: bool = True
) -> nn.Module:
    """Return a transposed convolution with kernel = stride: (n c *spatial) to (n c' *spatial·stride)."""
    make: Any = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    conv: nn.Module = make(in_channels, out_channels, stride, stride, bias=bias)
    return conv
