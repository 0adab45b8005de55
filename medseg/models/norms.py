"""Normalisation that keeps the memory layout, and works on bfloat16 input with float32 parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layout import is_channels_last, like_layout
from medseg.models.unet_fields import Norm

MAX_GROUPS = 32


class InstanceNorm(nn.Module):
    """Instance norm with scale and shift: the numbers of ``nn.InstanceNorm(affine=True)`` in the input's layout.

    PyTorch's instance norm answers in the default layout. A batch norm over a single sample is the same
    arithmetic, and its CPU kernel works in channels-last, so there each sample is normalised as a batch of one.

    Args:
        channels: number of channels.
        eps: added to the variance (Ulyanov et al. 2016, arXiv:1607.08022).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and layout; needs more than one voxel."""
        if not is_channels_last(x):
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        if x.device.type != "cpu":
            return like_layout(F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps), x)
        if x.shape[0] == 1:
            return self._one(x)
        # split, not indexing: the backward of split is one concatenation, that of each index a full-size tensor.
        return torch.cat([self._one(sample) for sample in x.split(1)])

    def _one(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the channels of each voxel, as in ConvNeXt (Liu et al. 2022, arXiv:2201.03545)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and layout."""
        last = x.movedim(1, -1)  # n *spatial c
        out = F.layer_norm(last, self.weight.shape, self.weight, self.bias, self.eps)
        return like_layout(out.movedim(-1, 1), x)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) with the largest number of groups up to 32 that divides the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and layout."""
        return like_layout(super().forward(x), x)


def num_groups(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32."""
    return next(groups for groups in range(min(MAX_GROUPS, channels), 0, -1) if channels % groups == 0)


def make_norm(norm: Norm, channels: int, spatial_dims: int) -> nn.Module | None:
    """Return the layer called `norm`, or None for ``none``."""
    if norm == "batch":
        return nn.BatchNorm2d(channels) if spatial_dims == 2 else nn.BatchNorm3d(channels)
    if norm == "instance":
        return InstanceNorm(channels)
    if norm == "group":
        return GroupNorm(channels)
    return LayerNorm(channels) if norm == "layer" else None
