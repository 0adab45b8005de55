"""Loading of published weights: renaming, adaptation to other channels, and refusal of weights that fit only in part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from medseg.errors import ModelError, error_message
from medseg.models.base import LoadedWeights, Model
from medseg.models.pretrained.config import COLOURS, PretrainedOptions
from medseg.models.pretrained.sources import read_weights
from medseg.models.pretrained.zoos.read_published import find_published_file, read_published

State = Mapping[str, Tensor]
M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class WeightMapping:
    """The mapping from published tensor names to those of a model.

    Attributes:
        prefixes: Pairs of a prefix of the source and a prefix of the model, such as ``("resnet.", "backbone.")``; the
            pair with which most tensors fit is used.
        heads: Prefixes of the model whose tensors depend on the classes; tensors of another shape keep fresh weights.
        stems: Endings of names in the model whose kernels are adapted to other numbers of channels.
        optional: Parts of names in the model that may be missing in the source.
        renames: Pairs of a pattern and its replacement for names of older versions, applied after the prefix.
    """

    prefixes: tuple[tuple[str, str], ...]
    heads: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()


def load_pretrained(model: M, options: PretrainedOptions, mapping: WeightMapping) -> M:
    """Return `model` with the weights that `options` selects, described by ``model.loaded_weights``.

    Args:
        model: Model with fresh weights; changed in place.
        options: Source of the weights.
        mapping: Names of the published tensors in the model.

    Returns:
        The same model.

    Raises:
        ModelError: The weights are not found or do not fit.
    """
    if options.weights is None:
        return model
    published = find_published_file(options.weights, download=options.download)
    if published is not None:
        model.loaded_weights = _load_published(model, published, mapping, options.weights)
    else:
        state = read_weights(options.weights, download=options.download)
        model.loaded_weights = load_into(model, state, mapping, source=options.weights)
    return model


def _load_published(model: Model, path: Path, mapping: WeightMapping, source: str) -> LoadedWeights:
    """Copy a whole model of a zoo into `model`; heads for another number of classes keep fresh weights."""
    published = read_published(path)
    published.require_options(model, source)
    colours = model.in_channels == len(COLOURS)
    state = published.tensors if colours else published.scaled_to_unit_variance()
    loaded = load_into(model, state, replace(mapping, prefixes=(("", ""),), renames=()), source=source)
    return replace(loaded, unused=(*loaded.unused, *published.left))


def load_into(model: Model, state: State, mapping: WeightMapping, *, source: str) -> LoadedWeights:
    """Copy `state` into `model`: all weights of the backbone or of the model, or none.

    Args:
        model: Model; changed in place.
        state: Tensors by their published names.
        mapping: Names of the published tensors in the model.
        source: Name of the source, for messages.

    Returns:
        The tensors that were loaded, adapted, left fresh, or not used.

    Raises:
        ModelError: No tensor fits, one has another shape, or one that does not belong to a head is missing.
    """
    own = model.state_dict()
    place, renamed = _best_place(own, state, mapping)
    if not any(key in own for key in renamed):
        fix = "Use the weights of this architecture"
        what = f"no tensor fits {type(model).__name__}, such as {next(iter(state), 'none')!r}"
        raise ModelError(error_message(source, what, fix=fix))
    filled: dict[str, Tensor] = {}
    adapted = []
    for key in sorted(own.keys() & renamed.keys()):
        found = renamed[key][1]
        if found.shape == own[key].shape:
            filled[key] = found
        elif not key.startswith(mapping.heads):
            filled[key] = _adapt(key, found, own[key], mapping, source)
            adapted.append(key)
    _require_whole(own, filled, place, mapping, source)
    used = {renamed[key][0] for key in filled}
    model.load_state_dict({**own, **filled})
    return LoadedWeights(
        source=source,
        loaded=tuple(filled),
        adapted=tuple(adapted),
        fresh=tuple(key for key in own if key not in filled),
        unused=tuple(key for key in state if key not in used),
    )


def inflate(kernel: Tensor, channels: int) -> Tensor:
    """Return a kernel (o c *k) for another number of input channels, with the same response to grey images.

    The channels of a grey image are equal, so the response depends only on the sum of the kernel over its channels,
    which is preserved.
    """
    mean: Tensor = kernel.mean(dim=1, keepdim=True) * (kernel.shape[1] / channels)
    return mean.repeat_interleave(channels, dim=1)


def resize_positions(table: Tensor, tokens: int) -> Tensor:
    """Return position embeddings (1 t d) resized to (1 tokens d), without the class token if there is one.

    The interpolation is bicubic, as in Dosovitskiy et al. 2021. Both grids must be square.
    """
    side, wanted = int(table.shape[1] ** 0.5), int(tokens**0.5)
    cells = table[:, table.shape[1] - side * side :]
    grid: Tensor = cells.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    if side != wanted:
        grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)


Renamed = dict[str, tuple[str, Tensor]]


def _best_place(own: State, state: State, mapping: WeightMapping) -> tuple[str, Renamed]:
    """Return the model's prefix with which most tensors fit, and the renamed tensors with their published names."""

    def fits(item: tuple[str, Renamed]) -> int:
        return sum(key in own and own[key].dim() == found.dim() for key, (_, found) in item[1].items())

    tried = [(ours, _rename(state, theirs, ours, mapping)) for theirs, ours in mapping.prefixes]
    return max(tried, key=fits)


def _rename(state: State, theirs: str, ours: str, mapping: WeightMapping) -> Renamed:
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(theirs):
            key = ours + name.removeprefix(theirs)
            for pattern, replacement in mapping.renames:
                key = re.sub(pattern, replacement, key)
            renamed[key] = (name, tensor)
    return renamed


def _adapt(key: str, found: Tensor, own: Tensor, mapping: WeightMapping, source: str) -> Tensor:
    same_kernel = found.dim() == own.dim() == 4 and (found.shape[0], *found.shape[2:]) == (
        own.shape[0],
        *own.shape[2:],
    )
    if key.endswith(mapping.stems or ("\0",)) and same_kernel:
        return inflate(found, own.shape[1])
    if key.endswith("pos_embed") and found.dim() == 3 and found.shape[2] == own.shape[2]:
        return resize_positions(found, own.shape[1])
    fix = "Set the model's options to those of the weights"
    expected = tuple(own.shape)
    raise ModelError(
        error_message(source, f"shape of {key!r}", found=tuple(found.shape), expected=expected, fix=fix)
    )


def _require_whole(own: State, filled: State, place: str, mapping: WeightMapping, source: str) -> None:
    """Raise unless all tensors under the prefix are filled, except heads, batch counters and optional ones."""
    optional = (*mapping.optional, "num_batches_tracked")
    missing = [
        key
        for key in own
        if key.startswith(place)
        and key not in filled
        and not key.startswith(mapping.heads)
        and not any(part in key for part in optional)
    ]
    if missing:
        fix = "Set the model's options to those of the weights"
        what = f"{len(missing)} tensors are missing, such as {missing[0]!r}"
        raise ModelError(error_message(source, what, fix=fix))
