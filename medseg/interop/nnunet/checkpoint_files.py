"""nnU-Net v2's ``checkpoint_*.pth``: weights and their description, read without executing code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medseg.errors import ModelError
from medseg.interop.state_dicts import from_plain_conv_unet, from_residual_encoder_unet
from medseg.models.unet.network_config import UNetConfig
from medseg.storage.torch_files import Allowed, read_torch_file

_PREFIXES = ("module.", "_orig_mod.")
_CONVERTERS = {"plain": from_plain_conv_unet, "residual": from_residual_encoder_unet}


@dataclass(frozen=True)
class Checkpoint:
    """The part of a checkpoint that prediction needs.

    Attributes:
        weights: State dict of nnU-Net's network; tensors stay in the file until they are used.
        trainer: Name of the trainer class.
        configuration: Configuration, such as ``3d_fullres``.
        epochs: Number of trained epochs, or None if the file does not contain it.
        mirror_axes: Tensor axes along which nnU-Net mirrors in prediction; empty for none.
        plans: Contents of ``plans.json``, which nnU-Net stores with the weights; empty if they are missing.
        dataset: Contents of ``dataset.json``, likewise.
    """

    weights: dict[str, Tensor]
    trainer: str
    configuration: str
    epochs: int | None
    mirror_axes: tuple[int, ...]
    plans: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the norms have running statistics, as with ``nnUNetTrainerBN``, which replaces the norm of the plans."""
        return any(key.endswith(".norm.running_mean") for key in self.weights)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of nnU-Net v2.

    Args:
        path: The file.

    Returns:
        The weights and their description.

    Raises:
        ModelError: The file is missing, damaged, in the older format, not a checkpoint of nnU-Net, or contains
            anything other than tensors, plain values and NumPy numbers.
    """
    values = read_torch_file(path, _numpy_numbers(), mapped=True)
    settings = _field(values, "init_args", dict, path)
    weights = _field(values, "network_weights", dict, path)
    if not weights or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in weights.items()):
        raise ModelError(f"{path}: network_weights: expected named tensors. Give a checkpoint of nnU-Net v2.")
    epochs = values.get("current_epoch")
    return Checkpoint(
        weights={_without_prefix(key): tensor for key, tensor in weights.items()},
        trainer=_field(values, "trainer_name", str, path),
        configuration=_field(settings, "configuration", str, path),
        epochs=epochs if isinstance(epochs, int) else None,
        mirror_axes=_mirror_axes(values.get("inference_allowed_mirroring_axes"), path),
        plans=found if isinstance(found := settings.get("plans"), dict) else {},
        dataset=found if isinstance(found := settings.get("dataset_json"), dict) else {},
    )


def is_checkpoint(path: Path) -> bool:
    """Return whether a file of ``torch.save`` is a checkpoint of nnU-Net v2.

    Args:
        path: The file.

    Returns:
        True if it has the entries of one.

    Raises:
        ModelError: The file is missing, damaged, or contains anything other than tensors, plain values and NumPy numbers.
    """
    values = read_torch_file(path, _numpy_numbers(), mapped=True)
    return isinstance(values, dict) and {"network_weights", "init_args"} <= values.keys()


def convert_weights(
    weights: Mapping[str, Tensor], config: UNetConfig, kind: str, order: Sequence[int]
) -> dict[str, Tensor]:
    """Convert a state dict of nnU-Net to medseg and permute the spatial axes of all kernels.

    Args:
        weights: State dict of ``PlainConvUNet`` or ``ResidualEncoderUNet``.
        config: Configuration of the same network in medseg, whose kernels and strides are already in medseg's order of axes.
        kind: ``plain`` or ``residual``.
        order: Spatial axis of nnU-Net's network for each axis of medseg's: axis ``order[i]`` becomes axis `i`.

    Returns:
        The state dict of medseg's U-Net.

    Raises:
        ModelError: A tensor is missing, unexpected, or has another shape.
    """
    axes = (0, 1, *(2 + axis for axis in order))
    turned = {key: t.permute(axes) if t.dim() == len(axes) else t for key, t in weights.items()}
    converted = _CONVERTERS[kind](turned, config)
    return {key: t.float() if t.is_floating_point() else t for key, t in converted.items()}


def _numpy_numbers() -> list[Allowed]:
    """Return the globals that a pickled NumPy number refers to, in NumPy 2 and, under its older name, in NumPy 1."""
    scalar: Any = np.float64(0).__reduce__()[0]
    types = [type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    return [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *types,
    ]


def _field(values: Any, key: str, kind: type, path: Path) -> Any:
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, kind):
        raise ModelError(
            f"{path}: {key}: found {type(found).__name__}, expected {kind.__name__}. Give a checkpoint of nnU-Net v2."
        )
    return found


def _without_prefix(key: str) -> str:
    """Return the key without the prefixes of parallel and compiled networks."""
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _mirror_axes(found: Any, path: Path) -> tuple[int, ...]:
    axes = () if found is None else found
    good = isinstance(axes, (tuple, list)) and all(type(axis) is int and 0 <= axis < 3 for axis in axes)
    if not good or len(set(axes)) != len(axes):
        raise ModelError(
            f"{path}: inference_allowed_mirroring_axes: found {found!r}, expected axes such as (0, 1, 2). Give a "
            "checkpoint of nnU-Net v2."
        )
    return tuple(axes)
