"""Files that hold tensors by name and nothing else: state dicts of medseg, of MONAI and of nnU-Net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from medseg.errors import ModelError
from medseg.interop.monai.import_weights import read_state
from medseg.interop.state_dicts import (
    from_basic_unet,
    from_dynunet,
    from_plain_conv_unet,
    from_residual_encoder_unet,
)
from medseg.models.base import Model
from medseg.models.unet.network import UNet
from medseg.models.unet.network_config import UNetConfig

Convert = Callable[[Mapping[str, Tensor], UNetConfig], dict[str, Tensor]]

# The first kernel of each network, which depends on the channels, its last, which depends on the outputs, and its conversion.
_FOREIGN: tuple[tuple[str, str, Convert], ...] = (
    ("input_block.conv1.conv.weight", "output_block.conv.conv.weight", from_dynunet),
    ("conv_0.conv_0.conv.weight", "final_conv.weight", from_basic_unet),
    ("encoder.stem.convs.0.conv.weight", "decoder.seg_layers.0.weight", from_residual_encoder_unet),
    ("encoder.stages.0.0.convs.0.conv.weight", "decoder.seg_layers.0.weight", from_plain_conv_unet),
)
_WRAPPED = "network."  # networks of MONAI are a submodule of their model


def read_tensors_for(model: Model, path: Path, key: str | None) -> dict[str, Tensor]:
    """Read a state dict with the names of a network: its own, or those of the network of MONAI or nnU-Net that it equals.

    Args:
        model: The network.
        path: ``.safetensors`` file, or file of ``torch.save`` with tensors and plain values only.
        key: Entry that holds the state dict, if there are several.

    Returns:
        The tensors by the names of medseg. Nothing is known about their channels and outputs.

    Raises:
        ModelError: The file is missing or damaged, holds anything else, or its tensors belong to another network.
    """
    state = read_state(path, key)
    own = model.state_dict()
    if own.keys() & state.keys():
        return state
    wrapped = {f"{_WRAPPED}{name}": tensor for name, tensor in state.items()}
    if own.keys() & wrapped.keys():
        return wrapped
    for first, last, convert in _FOREIGN:
        if first in state and last in state and isinstance(model, UNet):
            config = _config_of(model, state[first], state[last])
            try:
                return convert(state, config)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from None
    example = next(iter(state))
    raise ModelError(
        f"{path}: no tensor fits {type(model).__name__}: found {len(state)} tensors such as {example!r}, expected names such as "
        f"{next(iter(own))!r}. Set model.name to the network of the weights, or import them with medseg import."
    )


def _config_of(model: UNet, first: Tensor, last: Tensor) -> UNetConfig:
    """Return the configuration of the network with the channels and outputs of the source, and the biases it has."""
    values = dict(model.config) | {"in_channels": first.shape[1], "out_channels": last.shape[0]}
    return UNetConfig.parse({key: values[key] for key in UNetConfig.model_fields}, source="model")
