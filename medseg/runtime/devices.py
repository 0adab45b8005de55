"""Which arithmetic and layout a device runs fastest, decided by capability."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import nn

from medseg.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def best_device() -> torch.device:
    """CUDA where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checked_device(device: torch.device | str | None) -> torch.device:
    """The device, on which a number is put to see that it is there; None takes CUDA where there is one.

    Raises:
        ConfigError: unknown, or not on this machine.
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
    """Arithmetic for ``auto``: bfloat16 where the hardware multiplies it natively, else float32."""
    if precision == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
            )
        return torch.bfloat16 if device.type == "cpu" and has_amx() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def has_amx() -> bool:
    """Whether the processor has AMX tiles, which make bfloat16 convolutions several times faster."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast context for `dtype`; disabled for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_channels_last(module: Network, spatial_dims: int) -> Network:
    """Convolution weights in channels-last order, which the fast kernels want; values are unchanged."""
    layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    return module.to(memory_format=layout)
