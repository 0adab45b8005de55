"""Devices, and the precision and memory format that are fastest on them."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import nn

from medseg.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def best_device() -> torch.device:
    """Return the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checked_device(device: torch.device | str | None) -> torch.device:
    """Return a device after a check that a tensor can be created on it.

    Args:
        device: The device; None selects `best_device`.

    Returns:
        The device, with its index if it has one.

    Raises:
        ConfigError: The device is unknown or not on this machine.
    """
    if device is None:
        return best_device()
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):
        count = torch.cuda.device_count()
        known = ["cpu", *(f"cuda:{number}" for number in range(count))]
        raise ConfigError(
            f"device: found {device}, expected one of this machine, such as {' or '.join(known)}. Choose another"
            f"{'' if count else '; torch finds no CUDA device'}."
        ) from None


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the data type of a precision.

    Args:
        precision: ``auto`` is bfloat16 if the hardware multiplies it natively, else float32.
        device: Where the network runs.

    Returns:
        float32, bfloat16 or float16.
    """
    if precision == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
            )
        return torch.bfloat16 if device.type == "cpu" and has_amx() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def has_amx() -> bool:
    """Return whether the CPU has AMX tiles, with which bfloat16 convolutions are several times faster."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return an autocast context.

    Args:
        dtype: Data type of the arithmetic.
        device: Where the network runs.

    Returns:
        The context for this type of device, disabled for float32.
    """
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_channels_last(module: Network, spatial_dims: int) -> Network:
    """Convert convolution weights to channels-last memory format, which the fast kernels need.

    Args:
        module: Network, changed in place; the values of its weights stay the same.
        spatial_dims: 2 or 3.

    Returns:
        `module`.
    """
    layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    return module.to(memory_format=layout)
