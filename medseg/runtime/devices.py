"""Devices, and the precision and memory format that are fastest on them."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
_FIRST_TENSOR_CORES = (7, 0)  # compute capability of the first devices that multiply float16 in Tensor Cores


class HostCopy:
    """A tensor on its way to the host, which is copied in the background if it is on a CUDA device.

    Args:
        tensor: The tensor; one that is on the host already is not copied.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._copied = tensor, None
        if tensor.is_cuda:  # pragma: gpu
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def tensor(self) -> Tensor:
        """Return the tensor on the host as soon as it has arrived."""
        if self._copied is not None:  # pragma: gpu
            self._copied.synchronize()
        return self._tensor


def best_device() -> torch.device:
    """Return the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_list(devices: str | None) -> tuple[str | None, ...]:
    """Return the devices that an option names.

    Args:
        devices: One device, several separated by commas, ``all`` for every CUDA device, or None.

    Returns:
        The devices; None stands for `best_device`.

    Raises:
        ConfigError: ``all`` was given and there is no CUDA device.

    Examples:
        >>> device_list("cuda:0, cuda:1")
        ('cuda:0', 'cuda:1')
    """
    if devices is None:
        return (None,)
    if devices == "all":
        count = torch.cuda.device_count()
        if not count:
            raise ConfigError("device: found all, but torch finds no CUDA device. Choose cpu.")
        return tuple(f"cuda:{number}" for number in range(count))
    return tuple(name.strip() for name in devices.split(",") if name.strip()) or (devices,)


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


def resolve_precision(precision: Precision, device: torch.device, spatial_dims: int) -> torch.dtype:
    """Return the data type of a precision.

    On an H200 with cuDNN 9, 3D convolutions take 2.5 times as long in bfloat16 as in float16 in the default memory format,
    so that ``auto`` is float16 for 3D networks on CUDA devices. All 2D networks use bfloat16 there, because transformers
    exceed the range of float16 more easily.

    Args:
        precision: ``auto`` is the fastest precision that the hardware multiplies natively, else float32. ``tf32`` is float32
            with shorter mantissas in products, see `set_tf32`.
        device: Where the network runs.
        spatial_dims: Number of spatial axes of the network's images, 2 or 3.

    Returns:
        float32, bfloat16 or float16.
    """
    if precision != "auto":
        return torch.float32 if precision == "tf32" else getattr(torch, precision)
    if device.type == "cpu":
        return torch.bfloat16 if has_amx() else torch.float32
    if device.type != "cuda":
        return torch.float32
    if spatial_dims == 3:
        fast = torch.cuda.get_device_capability(device) >= _FIRST_TENSOR_CORES
        return torch.float16 if fast else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 products and convolutions of this process; only CUDA devices have it.

    TF32 keeps 10 of the 23 bits of a mantissa. PyTorch uses it in convolutions by default, which would make float32 inexact.

    Args:
        allowed: True for speed, False for exact float32.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")


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


def memory_format(device: torch.device, spatial_dims: int) -> torch.memory_format:
    """Return the memory format in which a network is fastest.

    Channels last, except for 3D networks on CUDA devices: their norms return the default format, so that every norm in
    channels-last format costs two transposing copies.

    Args:
        device: Where the network runs.
        spatial_dims: 2 or 3.

    Returns:
        The format of its weights and images.
    """
    if spatial_dims == 2:
        return torch.channels_last
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last_3d


def to_fast_format(module: Network, device: torch.device, spatial_dims: int) -> Network:
    """Convert convolution weights to the memory format that is fastest on a device, see `memory_format`.

    Args:
        module: Network, changed in place; the values of its weights stay the same.
        device: Where the network runs.
        spatial_dims: 2 or 3.

    Returns:
        `module`.
    """
    return module.to(memory_format=memory_format(device, spatial_dims))


def safer_precision(precision: Precision, dtype: torch.dtype) -> torch.dtype | None:
    """Return the data type for images whose logits are not finite.

    Args:
        precision: The precision that was asked for.
        dtype: What `resolve_precision` returned for it.

    Returns:
        bfloat16, which has the range of float32, where ``auto`` chose float16; None otherwise.
    """
    return torch.bfloat16 if precision == "auto" and dtype == torch.float16 else None
