"""Instance norm and activation in one Triton kernel, for inference on CUDA devices.

PyTorch's instance norm and activation read the map three times and write it twice; the kernel reads it twice and writes it
once. Convolutions in 16 bits are so fast that this memory traffic is a large part of a window's time.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

BLOCK = 2048
"""Voxels that a program reads at a time."""
PART = 16 * BLOCK
"""Voxels of a program, at least."""
MAX_PARTS = 256
"""Programs per channel, at most: each of them reads the moments of all."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def can_fuse(x: Tensor) -> bool:
    """Return whether `instance_norm_act` takes this map.

    Args:
        x: Map (n c *spatial).

    Returns:
        True if no gradient is wanted, nothing is traced, and the map is on a CUDA device in the default memory format. With
        ``TRITON_INTERPRET=1``, Triton's interpreter takes maps on the CPU, too.
    """
    on_device = x.is_cuda or (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return (
        on_device
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.dtype in _DTYPES
        and x.numel() > 0
        and x.is_contiguous()
        and has_triton()
    )


def instance_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, negative_slope: float = 1.0
) -> Tensor:
    """Return the activated instance norm of a map.

    The moments are those of float32 arithmetic whatever the data type of the map; results differ from
    `torch.nn.functional.instance_norm` by rounding.

    Args:
        x: Map (n c *spatial) that `can_fuse` accepts.
        weight: Scale (c).
        bias: Shift (c).
        eps: Constant added to the variance.
        negative_slope: Factor of negative values: 1 for no activation, 0 for ReLU.

    Returns:
        A new tensor like `x`.
    """
    from medseg.models.layers.norm_kernel import normalise, partial_moments

    rows, channels = x.shape[0] * x.shape[1], x.shape[1]
    voxels = x.numel() // rows
    part = max(PART, -(-voxels // (MAX_PARTS * BLOCK)) * BLOCK)
    parts = -(-voxels // part)
    moments = torch.empty((rows, parts, 2), dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    grid = (rows, parts)
    with torch.cuda.device_of(x):
        partial_moments[grid](x, moments, voxels, part, BLOCK=BLOCK)
        normalise[grid](
            x,
            moments,
            weight,
            bias,
            out,
            voxels,
            part,
            channels,
            parts,
            eps,
            negative_slope,
            PARTS=1 << (parts - 1).bit_length(),
            BLOCK=BLOCK,
        )
    return out
