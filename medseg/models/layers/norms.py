"""Norm layers that keep the memory format and accept bfloat16 input with float32 parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layers.layer_names import Norm
from medseg.models.layers.memory_format import is_channels_last, match_memory_format

MAX_GROUPS = 32
ROWS = 1024
"""Number of voxels that are summed in float32."""
COLUMNS = 64
"""Number of channels in one matrix product of `channel_statistics`, of which only the diagonal is used."""
COPIED = 2**22
"""Number of values that are shifted or converted to float32 at a time: 16 MiB."""
SMALL = 2**17
"""Number of values up to which everything is computed in float64, because the calls take longer than the sums."""
LARGE_MEAN = 1.0
"""Mean, in standard deviations, above which squares about zero have lost too many digits."""


class InstanceNorm(nn.Module):
    """Instance norm with scale and shift, as ``nn.InstanceNorm(affine=True)``, in the input's memory format.

    PyTorch's instance norm returns the default memory format. On CPUs, a sample in channels-last is therefore
    normalised with the elementwise kernel of batch norm, which keeps the format, and with `channel_statistics`.

    Args:
        channels: Number of channels.
        eps: Constant added to the variance (Ulyanov et al. 2016, arXiv:1607.08022).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and memory format; it must have more than one voxel."""
        if torch.compiler.is_exporting():
            return _in_steps(x, self.weight, self.bias, len(self.weight), self.eps)
        if not _uses_channel_statistics(x):
            return match_memory_format(
                F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps), x
            )
        weight, bias = self.weight.float(), self.bias.float()
        return _joined([_NormaliseSample.apply(sample, weight, bias, self.eps) for sample in x.split(1)])


def _uses_channel_statistics(x: Tensor) -> bool:
    """Return whether to normalise with `channel_statistics`: on the CPU, in channels-last, unless in float64."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and is_channels_last(x)


def _joined(samples: list[Tensor]) -> Tensor:
    # The samples come from split: its backward is one concatenation, whereas the backward of each index operation
    # would be a tensor of the batch's size.
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
    """Return the mean and variance, each (c) float32, of every channel of a sample (1 c *spatial) in channels-last.

    In this memory format, PyTorch's kernels for batch and group norm sum all voxels of a channel in one float32
    number; on 128³ voxels the normalised values are then wrong by 4e-3 (measured with PyTorch 2.14). Here, sums over
    `ROWS` voxels are float32, and these are added in float64. Squares that are summed about zero lose digits if a mean
    is large in comparison with its standard deviation; they are then summed again about the mean.
    """
    voxels = x.movedim(1, -1).reshape(-1, x.shape[1])  # a view in this memory format
    if voxels.numel() <= SMALL:
        variance, mean = torch.var_mean(voxels.double(), 0, correction=0)
        return mean.float(), variance.float()
    mean, variance = _moments(voxels, None)
    if bool((mean.square() > LARGE_MEAN**2 * variance).any()):
        shift = mean.float()
        rest, variance = _moments(voxels, shift)
        mean = shift + rest
    return mean.float(), variance.float()


def _moments(voxels: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean and variance (c) in float64 of voxels (v c), both of the voxels minus `shift`.

    The sums are batched matrix products: few calls, because each call that is split among threads waits for all of
    them, which takes long on a machine that is busy otherwise.
    """
    count, channels = voxels.shape
    copied = shift is not None or voxels.dtype != torch.float32
    total = torch.zeros(2, channels, dtype=torch.float64)
    for piece in voxels.split(max(1, COPIED // (ROWS * channels)) * ROWS if copied else count):
        values = piece.float() if shift is None else piece - shift
        whole = len(values) // ROWS * ROWS
        for rows in (values[:whole].view(-1, ROWS, channels), values[None, whole:]):
            if rows.numel():
                ones = rows.new_ones(()).expand(len(rows), 1, rows.shape[1])
                total[0] += torch.bmm(ones, rows).sum((0, 1), dtype=torch.float64)
                total[1] += _sums_of_squares(rows).sum(0, dtype=torch.float64)
    mean, square = total / count
    return mean, (square - mean.square()).clamp_(min=0)


def _sums_of_squares(rows: Tensor) -> Tensor:
    """Return the sums (m c) of the squares of rows (m v c): the diagonals of products, some channels at a time."""
    parts = rows.split(COLUMNS, dim=2)
    return torch.cat(
        [torch.bmm(part.transpose(1, 2), part).diagonal(dim1=1, dim2=2) for part in parts], dim=1
    )


def _in_steps(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Return the instance or group norm of x (n c *spatial), computed by elementary operations for export.

    onnxruntime's instance norm sums all voxels in one float32 number: on 128³ voxels after a ReLU, its values are
    wrong by 3e-3. These are wrong by 1e-6 and take two and a half times as long (measured with onnxruntime 1.23 on the
    CPU, where a convolution takes ten times as long as the norm).
    """
    n, channels, *size = x.shape
    grouped = x.reshape(n, groups, channels // groups, *size)
    centred = grouped - _mean_by_axis(grouped)
    inverse = (_mean_by_axis(centred.square()) + eps).rsqrt()
    scale, shift = (p.reshape(groups, -1, *[1] * len(size)) for p in (weight, bias))
    return (centred * (inverse * scale) + shift).reshape(x.shape)


def _mean_by_axis(x: Tensor) -> Tensor:
    """Return the mean over the spatial axes, kept with size 1; one axis at a time, so that no sum is long."""
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
        """Map (n c *spatial) to the same shape and memory format."""
        last = x.movedim(1, -1)  # n *spatial c
        out = F.layer_norm(last, self.weight.shape, self.weight, self.bias, self.eps)
        return match_memory_format(out.movedim(-1, 1), x)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) with the largest number of groups up to 32 that divides the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and memory format."""
        if torch.compiler.is_exporting():
            return _in_steps(x, self.weight, self.bias, self.num_groups, self.eps)
        if not _uses_channel_statistics(x):
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
    """Return the largest divisor of `channels` that is at most 32."""
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
