"""Transposed convolution and concatenation with the skip in one output, for inference on CUDA devices."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

_Transposed = nn.ConvTranspose2d | nn.ConvTranspose3d


def can_upsample_into(conv: nn.Module | None, lower: Tensor, skip: Tensor) -> bool:
    """Return whether `upsample_into` takes this convolution and these maps.

    Args:
        conv: The convolution.
        lower: Map of the coarser level.
        skip: Map of the encoder.

    Returns:
        True for a transposed convolution with kernel = stride on a CUDA device, if no gradient is wanted and nothing is
        traced, both maps are in the default memory format, and their sizes fit.
    """
    return (
        isinstance(conv, _Transposed)
        and lower.is_cuda
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and conv.kernel_size == conv.stride
        and conv.groups == 1
        and lower.is_contiguous()
        and skip.is_contiguous()
        and lower.dtype == skip.dtype
        and tuple(skip.shape[2:]) == tuple(n * s for n, s in zip(lower.shape[2:], conv.stride, strict=True))
    )


def upsample_into(conv: _Transposed, lower: Tensor, skip: Tensor) -> Tensor:
    """Return the upsampled map and the skip, concatenated along the channels.

    A transposed convolution with kernel = stride is one matrix product, whose result only has to be put in the order of
    voxels. It is put there in the concatenated map, so that concatenating reads and writes the skip alone.

    Args:
        conv: Transposed convolution with kernel = stride.
        lower: Map of the coarser level (n c *spatial).
        skip: Map (n s *spatial·stride).

    Returns:
        Map (n c' + s *spatial·stride) in the default memory format.
    """
    n, _, *size = lower.shape
    stride, dims = conv.stride, len(size)
    weight = conv.weight.flatten(1).t().to(lower.dtype)
    if conv.bias is None:
        product = torch.matmul(weight, lower.flatten(2))
    else:
        bias = conv.bias.to(lower.dtype).repeat_interleave(prod(stride))[:, None]
        product = torch.baddbmm(bias, weight.expand(n, -1, -1), lower.flatten(2))
    # (n, c', *stride, *spatial) to (n, c', spatial and stride of each axis in turn)
    order = (0, 1, *(axis for i in range(dims) for axis in (2 + dims + i, 2 + i)))
    ordered = product.view(n, conv.out_channels, *stride, *size).permute(order)
    merged = skip.new_empty((n, conv.out_channels + skip.shape[1], *skip.shape[2:]))
    merged[:, : conv.out_channels].view(ordered.shape).copy_(ordered)
    merged[:, conv.out_channels :].copy_(skip)
    return merged
