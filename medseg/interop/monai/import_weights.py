"""Weights of MONAI's networks as model folders, kept only if both packages compute the same logits.

A YAML file provides what a state dict does not contain: ``network``, the arguments of MONAI's constructor, and the keys
of a model folder's ``config.yaml`` (see `SavedModel`) except ``model``, ``medseg`` and ``trained_on``. MONAI's ``ScaleIntensityRanged(a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)`` is the method
``ct`` below::

    name: spleen
    network:
      spatial_dims: 3
      in_channels: 1
      out_channels: 2
      channels: [16, 32, 64, 128, 256]
      strides: [2, 2, 2, 2]
      num_res_units: 2
      norm: batch
    channel_names: [CT]
    preprocessing:
      orientation: RAS
      spacing: [1.5, 1.5, 2.0]
      crop_to_nonzero: false
      channels: [{method: ct, low: -57, high: 164, mean: -57, std: 221}]
    window: [96, 96, 96]
    predict: {overlap: 0.25}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medseg.errors import ConfigError, ModelError, did_you_mean, error_message
from medseg.inference.reference_output import write_reference
from medseg.interop.monai.networks import NETWORKS, Arguments
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import load_weights, save_model
from medseg.model_folder.licences import state_licences
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.base import Model
from medseg.runtime.formatting import error_reason
from medseg.runtime.machine import installed_version
from medseg.storage.torch_files import read_torch_file
from medseg.yaml_dialect import read_yaml

OURS = ("model", "medseg", "trained_on")
TOLERANCE = 1e-5
"""Maximum difference from MONAI's logits, relative to the largest logit if that exceeds 1."""


def import_monai(
    weights: str | Path,
    network: str,
    config: str | Path,
    labels: str | Path,
    folder: str | Path,
    *,
    key: str | None = None,
    licence: str | None = None,
) -> float:
    """Write a model folder from a state dict of MONAI.

    Args:
        weights: ``.safetensors`` file, or ``.pt`` file of tensors and plain values.
        network: A name in `NETWORKS`.
        config: YAML file; see the docstring of this module.
        labels: Table of the classes, and of the regions if the network ends in sigmoids; see `Labels.from_tsv`.
        folder: Model folder to write; an existing one is replaced.
        key: Entry of the file that contains the state dict, if there are several.
        licence: Licence of the weights, for the model card; None for that of `config`.

    Returns:
        The largest absolute difference of a logit from MONAI's own network.

    Raises:
        ConfigError: The config is invalid, or the files contradict each other.
        DataError: The table of labels cannot be read.
        ModelError: The weights cannot be read safely, do not fit the network, or give other logits.
    """
    arguments, saved, convert = read_config(network, Path(config))
    table = Labels.from_tsv(labels)
    _require_agreement(arguments, saved, table, config, labels)
    options = {name: value for name, value in saved.model.items() if name != "name"}
    model = build_model(
        saved.model["name"], in_channels=arguments.in_channels, num_classes=table.num_outputs, **options
    )
    _require_window(model, saved, config)
    state = read_state(Path(weights), key)
    load_weights(model, convert(state), Path(weights))
    difference = _measured(model, _theirs(network, arguments, state, Path(weights)), weights)
    if licence is not None:
        saved = saved.replace(card=saved.card.replace(licence=licence).to_plain())
    save_model(folder, model, saved, table, finish=write_reference)
    state_licences(saved, folder)
    return difference


def read_config(network: str, path: Path) -> tuple[Arguments, SavedModel, Any]:
    """Return the network's arguments, the settings of the model folder, and the function that converts the weights.

    Args:
        network: A name in `NETWORKS`.
        path: YAML file.

    Returns:
        The three.

    Raises:
        ConfigError: The network is unknown, keys are missing or wrong, or the network has no equivalent in medseg.
    """
    if network not in NETWORKS:
        hint = did_you_mean(network, NETWORKS)
        raise ConfigError(f"--network: found {network!r}, expected one of {', '.join(NETWORKS)}.{hint}")
    values = read_yaml(path)
    kind, name = NETWORKS[network]
    given = values.pop("network", None)
    if not isinstance(given, dict):
        raise ConfigError(
            f"{path}: network: found {given!r}, expected the arguments of monai.networks.nets.{name}. Add them."
        )
    unwanted = [key for key in OURS if key in values]
    if unwanted:
        raise ConfigError(
            f"{path}: {unwanted[0]}: found a value, expected none, because this command fills it in. Remove the key."
        )
    arguments = kind.parse(given, source=f"{path}: network")
    translation = arguments.translated(str(path))
    origin = {"imported_from": f"MONAI {name}"}
    filled = {"medseg": installed_version(), "model": translation.model, "trained_on": origin}
    return arguments, SavedModel.parse({**values, **filled}, source=str(path)), translation.convert


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return a state dict in float32 from a safetensors file or a file of ``torch.save``.

    Args:
        path: The file.
        key: Entry of the file that contains the state dict, if there are several.

    Returns:
        The tensors by name.

    Raises:
        ModelError: The file is missing or damaged, contains more than tensors and plain values, or no state dict.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    found = {name: value for name, value in _entries(content).items() if _is_state(value)}
    if key is not None and key in found:
        chosen = key
    elif key is None and len(found) == 1:
        chosen = next(iter(found))
    else:
        listed = ", ".join(map(repr, found)) or "none"
        what = f"state dict{f' called {key!r}' if key else ''}"
        fix = "Choose one with --key" if found else "Save the state dict of the network"
        raise ModelError(error_message(path, what, found=listed, expected="one", fix=fix))
    state = {name.removeprefix("module."): tensor for name, tensor in found[chosen].items()}
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not readable ({error}). Copy it again.") from None


def _entries(content: Any) -> dict[str, Any]:
    """Return the entries of a checkpoint by name; a state dict is a single entry."""
    if _is_state(content):
        return {"the file": content}
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items())


def _require_agreement(
    arguments: Arguments, saved: SavedModel, table: Labels, config: str | Path, labels: str | Path
) -> None:
    channels, classes = arguments.in_channels, arguments.out_channels
    if classes == 1 and not table.regions:
        raise ConfigError(
            f"{config}: network.out_channels: found 1, expected one per class, background included. If a sigmoid "
            f"follows, add a row of kind region to {labels}."
        )
    outputs = "regions" if table.regions else "labels, background included"
    for where, what, found, expected in (
        (labels, outputs, table.num_outputs, classes),
        (config, "channel_names", len(saved.channel_names), channels),
        (config, "preprocessing.channels", len(saved.preprocessing.channels), channels),
    ):
        if found != expected:
            fix = "Give one per channel" if where == config else "Give one row per output of the network"
            raise ConfigError(error_message(where, what, found=found, expected=expected, fix=fix))


def _require_window(model: Model, saved: SavedModel, config: str | Path) -> None:
    """Raise unless the window consists of multiples of the divisor, the only sizes that MONAI's networks accept."""
    flat = [saved.slice_axis] if model.spatial_dims == 2 else []
    window = [size for axis, size in enumerate(saved.window) if axis not in flat]
    if any(size % step for size, step in zip(window, model.divisor, strict=True)):
        expected = f"multiples of {list(model.divisor)}"
        fix = "Set it to the patch size used in training"
        raise ConfigError(error_message(config, "window", found=window, expected=expected, fix=fix))
    if flat and saved.window[saved.slice_axis] != 1:
        fix = "Set it to 1, as a 2D network sees one slice"
        raise ConfigError(
            error_message(
                config, f"window.{saved.slice_axis}", found=saved.window[flat[0]], expected=1, fix=fix
            )
        )


def _theirs(network: str, arguments: Arguments, state: Mapping[str, Tensor], weights: Path) -> nn.Module:
    """Return MONAI's own network with its weights."""
    import monai.networks.nets

    given = {key: getattr(arguments, key) for key in type(arguments).model_fields}
    try:
        built: nn.Module = getattr(monai.networks.nets, NETWORKS[network][1])(**given)
        built.load_state_dict(dict(state))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = error_reason(error, 300)
        fix = "Check the arguments under network"
        raise ModelError(
            error_message(weights, f"MONAI's own network does not accept the weights: {reason}", fix=fix)
        ) from None
    return built.eval()


def _measured(model: Model, theirs: nn.Module, weights: str | Path) -> float:
    """Return the largest absolute difference of a logit on noise, or raise if it exceeds the tolerance."""
    size = [2 * step for step in model.divisor]
    image = torch.randn(2, model.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(image)
        difference = float((model.eval()(image) - expected).abs().max())
    largest = float(expected.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        found = f"{difference:.2g} on logits up to {largest:.2g}"
        fix = "Nothing was written; check the arguments under network"
        what = "the logits differ from those of MONAI's own network"
        raise ModelError(
            error_message(weights, what, found=found, expected=f"at most {TOLERANCE:g}", fix=fix)
        )
    return difference
