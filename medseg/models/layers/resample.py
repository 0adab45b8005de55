"""Downsampling and upsampling by whole factors, in 2D and 3D, keeping the memory format."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layers.convs import conv_nd, conv_transpose_nd
from medseg.models.layers.layer_names import Upsample
from medseg.models.layers.memory_format import is_channels_last, match_memory_format


def max_pool(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return the maximum over windows of `stride`: (n c *spatial) to (n c *spatial/stride)."""
    return match_memory_format((F.max_pool2d if x.dim() == 4 else F.max_pool3d)(x, stride), x)


def avg_pool(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return the mean over windows of `stride`: (n c *spatial) to (n c *spatial/stride)."""
    if x.dim() == 4:
        return match_memory_format(F.avg_pool2d(x, stride), x)
    # PyTorch has no 3D average pooling in 16 bits on the CPU.
    wide = x if x.is_cuda or x.dtype == torch.float64 else x.float()
    return match_memory_format(F.avg_pool3d(wide, stride).to(x.dtype), x)


def resize(x: Tensor, size: tuple[int, ...], *, nearest: bool = False, align_corners: bool = False) -> Tensor:
    """Interpolate `x` (n c *spatial) to `size`, linearly or from the nearest voxel."""
    if tuple(x.shape[2:]) == size:
        return x
    if nearest:
        return match_memory_format(F.interpolate(x, size, mode="nearest"), x)
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    return match_memory_format(F.interpolate(x, size, mode=mode, align_corners=align_corners), x)


def pixel_shuffle(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Move channels to voxels: (n c·prod(stride) *spatial) to (n c *spatial·stride).

    In 2D this equals `torch.nn.functional.pixel_shuffle`, which has no 3D form (Shi et al. 2016, arXiv:1609.05158).
    """
    n, channels, *size = x.shape
    dims = len(stride)
    grid = range(1, dims + 1)
    # n *spatial c *stride  →  n (spatial, stride of the same axis)… c
    last = x.movedim(1, -1).reshape(n, *size, channels // prod(stride), *stride)
    order = (0, *(axis for i in grid for axis in (i, i + dims + 1)), dims + 1)
    merged = last.permute(order).reshape(n, *(s * f for s, f in zip(size, stride, strict=True)), -1)
    out = merged.movedim(-1, 1)
    return out if is_channels_last(x) else out.contiguous()


class Upsampler(nn.Module):
    """Upsampling of the map of the coarser level to the grid of a decoder level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the coarser map.
        out_channels: Channels of the result.
        stride: Factor per axis.
        mode: Method; see `UNetOptions.upsample`.
        bias: Whether the convolution has a bias, if the mode has a convolution.
        align_corners: Whether linear interpolation aligns the corner voxels.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, ...],
        *,
        mode: Upsample,
        bias: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.stride, self.mode, self.align_corners = stride, mode, align_corners
        self.conv: nn.Module | None = None
        if mode == "transpose":
            self.conv = conv_transpose_nd(spatial_dims, in_channels, out_channels, stride, bias=bias)
        elif mode == "pixelshuffle":
            self.conv = conv_nd(spatial_dims, in_channels, out_channels * prod(stride), bias=bias)
        elif in_channels != out_channels:
            self.conv = conv_nd(spatial_dims, in_channels, out_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to (n c' *spatial·stride)."""
        if self.conv is not None:
            x = self.conv(x)
        if self.mode == "transpose":
            return x
        if self.mode == "pixelshuffle":
            return pixel_shuffle(x, self.stride)
        size = tuple(s * f for s, f in zip(x.shape[2:], self.stride, strict=True))
        return resize(x, size, nearest=self.mode == "nearest", align_corners=self.align_corners)
