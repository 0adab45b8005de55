"""Inflation of the kernels of a 2D network to those of a 3D network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.models.base import Model

_KERNEL_2D = 4  # axes of a kernel of a 2D network: outputs, inputs, and two in the plane


def inflated_state(
    state: Mapping[str, Tensor], model: Model, method: Literal["mean", "centre"], axis: int
) -> dict[str, Tensor]:
    """Return the state dict of a 2D network with the kernels of a 3D network.

    A transposed convolution fills the new axis: each voxel receives a mean over the elements of the kernel that reach it.

    Args:
        state: State dict of the 2D network.
        model: The 3D network, whose kernels give the length along the new axis.
        method: ``mean`` or ``centre``; see `AdaptSettings.inflate`.
        axis: Array axis across the slices, which the 2D network did not see.

    Returns:
        The state dict; tensors that are no kernels, or not in the 3D network, are unchanged.

    Examples:
        >>> from medseg.models import build_model
        >>> flat, deep = (build_model(f"unet_{d}d", in_channels=1, num_classes=2, channels=[4, 8]) for d in (2, 3))
        >>> kernels = inflated_state(flat.state_dict(), deep, "mean", axis=2)
        >>> tuple(kernels["encoder.0.blocks.0.conv.weight"].shape)
        (4, 1, 3, 3, 3)
    """
    strides = {
        f"{name}.weight": module.stride[axis]
        for name, module in model.named_modules()
        if isinstance(module, nn.ConvTranspose3d)
    }
    own, result = model.state_dict(), {}
    for name, tensor in state.items():
        if tensor.dim() == _KERNEL_2D and name in own and own[name].dim() == _KERNEL_2D + 1:
            shares = _shares(own[name].shape[2 + axis], strides.get(name), method)
            places = [-1 if place == axis else 1 for place in range(3)]
            tensor = tensor.unsqueeze(2 + axis) * shares.to(tensor.dtype).view(1, 1, *places)
        result[name] = tensor
    return result


def _shares(length: int, stride: int | None, method: str) -> Tensor:
    """Return the factor of each element along the new axis; `stride` is that of a transposed convolution, else None."""
    if stride is not None:
        reached = torch.bincount(torch.arange(length) % stride)
        return 1 / reached[torch.arange(length) % stride]
    if method == "mean":
        return torch.full((length,), 1 / length)
    return (torch.arange(length) == (length - 1) // 2).float()
