"""Normalisation that keeps the memory layout, and works on bfloat16 input with float32 parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layers.layer_names import Norm
from medseg.models.layers.memory_format import is_channels_last, match_memory_format

MAX_GROUPS = 32
CHUNK = 2**17
"""Values that are summed at a time: 512 KiB in float32."""


class InstanceNorm(nn.Module):
    """Instance norm with scale and shift: the numbers of ``nn.InstanceNorm(affine=True)`` in the input's layout.

    PyTorch's instance norm answers in the default layout. On CPUs a sample in channels-last is instead normalised
    with the elementwise kernel of batch norm, which keeps the layout, and with statistics of our own.

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
        if torch.compiler.is_exporting():
            return _in_steps(x, self.weight, self.bias, len(self.weight), self.eps)
        if not _exactly(x):
            return match_memory_format(
                F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps), x
            )
        weight, bias = self.weight.float(), self.bias.float()
        return _joined([_NormaliseSample.apply(sample, weight, bias, self.eps) for sample in x.split(1)])


def _exactly(x: Tensor) -> bool:
    """Whether to normalise with `channel_statistics`: channels-last on the CPU, in at most float32."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and is_channels_last(x)


def _joined(samples: list[Tensor]) -> Tensor:
    # Made by split, not by indexing: the backward of split is one concatenation, that of every index a tensor of
    # the batch's size.
    return samples[0] if len(samples) == 1 else torch.cat(samples)


class _NormaliseSample(torch.autograd.Function):
    """Instance norm of one sample (1 c *spatial) in channels-last on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean, variance = channel_statistics(x)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        grad = match_memory_format(grad, x)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, ctx.eps, needed
        )
        return (*(g if need else None for g, need in zip(grads, needed, strict=True)), None)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (c, each float32) of every channel of a sample (1 c *spatial) in channels-last.

    PyTorch's own kernels for batch and group norm add up all voxels in one float32 number per channel in this
    layout: on 128³ voxels the normalised values are then wrong by 4e-3 (measured with 2.14). Here chunks that fit
    the cache are summed in float32, after a shift that keeps the squares small, and the chunks in float64: 2e-6,
    and as fast.
    """
    channels = x.shape[1]
    voxels = x.movedim(1, -1).reshape(-1, channels)  # a view in this layout
    chunks = voxels.split(max(1, CHUNK // channels))
    shift = chunks[0].float().mean(0)
    total = torch.zeros(2, channels, dtype=torch.float64)
    for chunk in chunks:
        shifted = chunk - shift  # float32, also from bfloat16
        total[0] += shifted.sum(0)
        total[1] += shifted.square_().sum(0)
    mean, square = total / len(voxels)
    return (shift + mean).float(), (square - mean.square()).clamp_(min=0).float()


def _in_steps(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Instance or group norm of x (n c *spatial) as means, a difference and a product: what other runtimes are given.

    onnxruntime's instance norm adds up all voxels in one float32 number: on 128³ voxels behind a ReLU its values are
    wrong by 3e-3, these by 1e-6, in two and a half times the time (measured with 1.23 on the
    processor, where a convolution takes ten times that).
    """
    n, channels, *size = x.shape
    grouped = x.reshape(n, groups, channels // groups, *size)
    centred = grouped - _mean_by_axis(grouped)
    inverse = (_mean_by_axis(centred.square()) + eps).rsqrt()
    scale, shift = (p.reshape(groups, -1, *[1] * len(size)) for p in (weight, bias))
    return (centred * (inverse * scale) + shift).reshape(x.shape)


def _mean_by_axis(x: Tensor) -> Tensor:
    """Mean over all axes but the first two, one at a time, so that no sum is long; those axes have size 1."""
    for axis in range(x.dim() - 1, 1, -1):
        x = x.mean(axis, keepdim=True)
    return x


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
        return match_memory_format(out.movedim(-1, 1), x)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) with the largest number of groups up to 32 that divides the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and layout."""
        if torch.compiler.is_exporting():
            return _in_steps(x, self.weight, self.bias, self.num_groups, self.eps)
        if not _exactly(x):
            return match_memory_format(super().forward(x), x)
        settings = (self.weight.float(), self.bias.float(), self.num_groups, self.eps)
        return _joined([_NormaliseGroups.apply(sample, *settings) for sample in x.split(1)])


class _NormaliseGroups(torch.autograd.Function):
    """Group norm of one sample (1 c *spatial) in channels-last on the CPU, with exact statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        channel_mean, channel_variance = (s.double().view(groups, -1) for s in channel_statistics(x))
        mean = channel_mean.mean(1)
        variance = (channel_variance + channel_mean.square()).mean(1) - mean.square()
        ctx.save_for_backward(x, weight, mean.float(), (variance + eps).rsqrt().float())
        ctx.groups = groups
        width = len(weight) // groups
        each_mean, each_variance = (s.float().repeat_interleave(width) for s in (mean, variance))
        return F.batch_norm(x, each_mean, each_variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        shape = (1, x.shape[1], x[0, 0].numel(), ctx.groups)
        grads = torch.ops.aten.native_group_norm_backward(
            match_memory_format(grad, x), x, mean.view(1, -1), inverse.view(1, -1), weight, *shape, needed
        )
        return (*(g if need else None for g, need in zip(grads, needed, strict=True)), None, None)


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
