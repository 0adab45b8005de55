"""The rule by which trained weights are matched with a network; there is no other.

Outputs are matched by the names of labels or regions and input channels by the names of channels. A name that the
source lacks is new, one that only the source has is left. All other tensors must be there with their shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import ConfigError, ModelError, did_you_mean
from medseg.fine_tuning.inflate_kernels import inflated_state
from medseg.fine_tuning.network_ends import Build, EndAxis, Ends, Kind, end_axes
from medseg.fine_tuning.settings import AdaptSettings
from medseg.model_folder.started_from import TransferRow
from medseg.models.base import Model

_NOT_LEARNED = "num_batches_tracked"
_MOST_LISTED = 3
_INFLATED = "to three axes"
_PARTS: dict[Kind, str] = {"input": "channel", "output": "output"}


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of a trained network, and what is known about it.

    Attributes:
        where: File or folder, for messages.
        tensors: State dict with the names of medseg.
        ends: Names of its channels and outputs.
        dims: Number of spatial axes.
        slice_axis: Array axis across the slices, if `dims` is 2.
        heads: Names of its tensors that depend on the outputs; those that the new network lacks may be left.
        has_background: Whether its first output is the background.
        new_channel_factor: Factor of the kernels of channels that it does not have, whose intensities have standard deviation 1.
    """

    where: Path
    tensors: Mapping[str, Tensor]
    ends: Ends
    dims: int
    slice_axis: int = 2
    heads: frozenset[str] = frozenset()
    has_background: bool = True
    new_channel_factor: float = 1.0


Names = tuple[str, ...]
Places = tuple[int | None, ...]
"""For each name of the new network, its place in the source; None if it is new."""


def take_weights(
    model: Model, build: Build, ends: Ends, source: TrainedWeights, adapt: AdaptSettings
) -> tuple[TransferRow, ...]:
    """Copy trained weights into a network.

    Args:
        model: Network with fresh weights; changed in place, or not at all if the weights do not fit.
        build: Function that builds the same network for other numbers of channels and outputs.
        ends: Names of its channels and outputs.
        source: The trained weights.
        adapt: Names that differ, and how kernels are adapted.

    Returns:
        What was taken, adapted, new and left.

    Raises:
        ConfigError: `adapt` names what does not exist, or the number of axes differs and inflation is not requested.
        ModelError: The weights are those of another architecture.
    """
    axes = end_axes(build, model.in_channels, model.num_classes)
    matching = _Matching.of(ends, source, adapt, axes)
    tensors = _of_same_axes(model, source, adapt)
    own = model.state_dict()
    filled: dict[str, Tensor] = {}
    results: dict[str, tuple[str, str]] = {}
    problems = []
    for name, fresh in own.items():
        at_end = axes.get(name, ())
        if name in tensors:
            found = matching.fitted(tensors[name], fresh, at_end)
            if found is None:
                found_shape, expected = tuple(tensors[name].shape), tuple(fresh.shape)
                problems.append(f"{name}: found {found_shape}, expected {expected}")
            else:
                filled[name] = found.to(fresh)
                results[name] = matching.result(at_end, inflated=source.tensors[name].dim() < fresh.dim())
        elif any(end.kind == "output" for end in at_end):
            results[name] = ("new", "fresh")
        elif not name.endswith(_NOT_LEARNED):
            problems.append(f"{name}: found no such tensor, expected {tuple(fresh.shape)}")
    left = [name for name in tensors if name not in own and not name.endswith(_NOT_LEARNED)]
    problems += [f"{name}: found a tensor, expected none" for name in left if name not in source.heads]
    if problems:
        raise ModelError(_do_not_fit(model, source, problems))
    model.load_state_dict({**own, **filled})
    return (*matching.rows(), *_tensor_rows(results, left))


def _do_not_fit(model: Model, source: TrainedWeights, problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
    return (
        f"{source.where}: the weights do not fit {type(model).__name__}: {'; '.join(problems[:_MOST_LISTED])}{more}. Set the "
        "options of model to those of the weights, as medseg plan DATASET --from does."
    )


@dataclass(frozen=True)
class _Matching:
    """The places of channels (``input``) and outputs (``output``) in the source.

    Attributes:
        here: Names of the new network.
        there: Names of the source; numbered where they are not known.
        places: Place in the source of each name of the new network.
        zero: Whether kernels of new channels are zero in any case.
        factor: Factor of the other kernels of new channels.
    """

    here: Mapping[Kind, Names]
    there: Mapping[Kind, Names]
    places: Mapping[Kind, Places]
    zero: bool
    factor: float

    @classmethod
    def of(
        cls,
        ends: Ends,
        source: TrainedWeights,
        adapt: AdaptSettings,
        axes: Mapping[str, tuple[EndAxis, ...]],
    ) -> _Matching:
        """Match the names, and check those that `adapt` gives."""
        here: dict[Kind, Names] = {"input": ends.inputs or (), "output": ends.outputs or ()}
        known: dict[Kind, Names | None] = {"input": source.ends.inputs, "output": source.ends.outputs}
        there: dict[Kind, Names] = {}
        for kind, names in known.items():
            count = _count(kind, axes, source)
            there[kind] = names or tuple(f"{kind} {number + 1}" for number in range(count))
            if len(there[kind]) != count and not source.heads:
                where = "model.adapt.source_channels" if kind == "input" else "model.adapt.source_labels"
                raise ConfigError(
                    f"{where}: found {len(there[kind])} names, expected {count}, as many as {source.where} has {kind}s. "
                    "Name each."
                )
        renamed: dict[Kind, Mapping[str, str]] = {"input": adapt.channels, "output": adapt.labels}
        places = {kind: _places(here[kind], known[kind], renamed[kind], kind, source) for kind in here}
        if known["input"] is None and len(there["input"]) == len(here["input"]):
            places["input"] = tuple(range(len(here["input"])))  # nothing but the order is known
        if source.ends.regions != ends.regions:
            places["output"] = (None,) * len(here["output"])  # sigmoids and a softmax have other logits
        elif known["output"] is not None and not ends.regions and source.has_background:
            places["output"] = (0, *(place or None for place in places["output"][1:]))
        if adapt.new_channels == "zero" and not any(place is not None for place in places["input"]):
            raise ConfigError(
                f"model.adapt.new_channels: found zero, but {source.where} has none of the channels {', '.join(here['input'])} (it "
                f"has {', '.join(there['input'])}), expected one at least. Set it to share, or name them in "
                "model.adapt.channels."
            )
        return cls(here, there, places, adapt.new_channels == "zero", source.new_channel_factor)

    def fitted(self, found: Tensor, fresh: Tensor, axes: Sequence[EndAxis]) -> Tensor | None:
        """Return a tensor of the source fitted to the channels and outputs; None if its shape does not allow it."""
        for end in axes:
            count = len(self.there[end.kind])
            if end.axis >= found.dim() or found.shape[end.axis] != end.step * count + end.extra:
                return None
            if end.kind == "input":
                found = self._with_inputs(found, fresh, end)
        at_outputs = [end for end in axes if end.kind == "output"]
        others = set(range(found.dim())) - {end.axis for end in at_outputs}
        if found.dim() != fresh.dim() or any(found.shape[axis] != fresh.shape[axis] for axis in others):
            return None
        return self._with_outputs(found, fresh, at_outputs) if at_outputs else found

    def _with_inputs(self, found: Tensor, fresh: Tensor, end: EndAxis) -> Tensor:
        places = self.places["input"]
        blocks, rest = _blocks(found, end, len(self.there["input"]))
        if (
            end.axis == 0
        ):  # one value per channel, such as a norm of the image: fresh values are as good as any
            filling, _ = _blocks(fresh, end, len(places))
        else:
            unused = [block for number, block in enumerate(blocks) if number not in places]
            shared = torch.zeros_like(found.narrow(end.axis, 0, end.step))
            if not self.zero:
                for block in unused:
                    shared = shared if block is None else shared + block
            filling = [shared * self.factor / max(1, places.count(None))] * len(places)
        chosen = [filling[n] if place is None else blocks[place] for n, place in enumerate(places)]
        return torch.cat([*(part for part in chosen if part is not None), rest], dim=end.axis)

    def _with_outputs(self, found: Tensor, fresh: Tensor, ends: Sequence[EndAxis]) -> Tensor:
        """Return `fresh` with the entries of the outputs that are kept; some kernels have the outputs on two axes."""
        result, grid = fresh.clone(), []
        along = {end.axis: end for end in ends}
        for axis, size in enumerate(fresh.shape):
            here = torch.arange(size)
            if axis in along:
                here, there = self._kept_entries(along[axis])
                found = found.index_select(axis, there)
            grid.append(here.view([-1 if place == axis else 1 for place in range(fresh.dim())]))
        result[tuple(grid)] = found.to(fresh)
        return result

    def _kept_entries(self, end: EndAxis) -> tuple[Tensor, Tensor]:
        """Return the entries along an axis of the outputs that are kept, in the new network and in the source."""
        places, first = self.places["output"], min(0, end.extra)  # the first outputs may have no entries
        pairs = [
            (first + number * end.step + entry, first + place * end.step + entry)
            for number, place in enumerate(places)
            if place is not None
            for entry in range(end.step)
        ]
        if _any_kept(places):
            ends_at = len(places) * end.step, len(self.there["output"]) * end.step
            pairs += [(ends_at[0] + entry, ends_at[1] + entry) for entry in range(end.extra)]
        pairs = [pair for pair in pairs if min(pair) >= 0]
        return torch.tensor([here for here, _ in pairs]).long(), torch.tensor(
            [old for _, old in pairs]
        ).long()

    def result(self, axes: Sequence[EndAxis], *, inflated: bool) -> tuple[str, str]:
        """Return what became of a tensor with these axes, and a note."""
        notes = [_INFLATED] if inflated else []
        for kind in dict.fromkeys(end.kind for end in axes):
            if kind == "output" and not _any_kept(self.places[kind]):
                return "new", "fresh"
            if self.places[kind] != tuple(range(len(self.there[kind]))):
                notes.append(f"to the {_PARTS[kind]}s")
        return ("adapted", ", ".join(notes)) if notes else ("taken", "")

    def rows(self) -> list[TransferRow]:
        """Return one row per channel and output."""
        rows: list[TransferRow] = []
        for kind, places in self.places.items():
            left = [name for number, name in enumerate(self.there[kind]) if number not in places]
            how = "fresh" if kind == "output" else "zero"
            if kind == "input" and left and not self.zero:
                how = f"share of {', '.join(left)}"
            rows += [
                _row(_PARTS[kind], name, "", "new", how)
                if place is None
                else _row(_PARTS[kind], name, self.there[kind][place], "taken")
                for name, place in zip(self.here[kind], places, strict=True)
            ]
            rows += [_row(_PARTS[kind], "", name, "left") for name in left]
        return rows


def _of_same_axes(model: Model, source: TrainedWeights, adapt: AdaptSettings) -> Mapping[str, Tensor]:
    """Return the tensors of the source, with kernels of 2D networks inflated if that is requested."""
    if source.dims == model.spatial_dims:
        return source.tensors
    if source.dims > model.spatial_dims:
        raise ConfigError(
            f"model.weights: {source.where}: found weights of a 3D network for the 2D network {type(model).__name__}, expected "
            "those of a 2D network. Choose a 3D model."
        )
    if adapt.inflate is None:
        raise ConfigError(
            f"model.weights: {source.where}: found weights of a 2D network for the 3D network {type(model).__name__}, expected "
            "those of a 3D network. Set model.adapt.inflate to mean or centre to inflate the kernels, or choose a 2D model."
        )
    return inflated_state(source.tensors, model, adapt.inflate, source.slice_axis)


def _count(kind: Kind, axes: Mapping[str, tuple[EndAxis, ...]], source: TrainedWeights) -> int:
    """Return the number of channels or outputs of the source, by the first tensor that depends on it."""
    for name, ends in axes.items():
        for end in ends:
            if end.kind == kind and name in source.tensors and end.axis < source.tensors[name].dim():
                return (source.tensors[name].shape[end.axis] - end.extra) // end.step
    return len((source.ends.inputs if kind == "input" else source.ends.outputs) or ())


def _places(
    here: Names, there: Names | None, renamed: Mapping[str, str], kind: Kind, source: TrainedWeights
) -> Places:
    key = "model.adapt.channels" if kind == "input" else "model.adapt.labels"
    for name, old in renamed.items():
        if name not in here:
            raise ConfigError(
                f"{key}: found {name!r}, expected one of {', '.join(here)}.{did_you_mean(name, here)} Correct it."
            )
        if old not in (there or ()):
            known = ", ".join(there or ()) or "no names, because it holds tensors only"
            raise ConfigError(
                f"{key}.{name}: found {old!r}, expected a name of {source.where}: {known}.{did_you_mean(old, there or ())} "
                "Correct it."
            )
    numbers = {name: number for number, name in enumerate(there or ())}
    return tuple(numbers.get(renamed.get(name, name)) for name in here)


def _any_kept(places: Places) -> bool:
    return any(place is not None for place in places)


def _blocks(tensor: Tensor, end: EndAxis, names: int) -> tuple[list[Tensor | None], Tensor]:
    """Return the entries of each name along an end axis, None for names without entries, and the entries of none."""
    omitted = max(0, -end.extra) // end.step
    length = (names - omitted) * end.step
    parts = tensor.narrow(end.axis, 0, length).split(end.step, dim=end.axis) if length else ()
    return [*[None] * omitted, *parts], tensor.narrow(end.axis, length, tensor.shape[end.axis] - length)


def _is_head(axes: Sequence[EndAxis]) -> bool:
    return any(end.kind == "output" for end in axes)


def _row(part: str, here: str, source: str, result: str, note: str = "") -> TransferRow:
    return TransferRow.parse({"part": part, "here": here, "source": source, "result": result, "note": note})


def _tensor_rows(results: Mapping[str, tuple[str, str]], left: Sequence[str]) -> list[TransferRow]:
    """Return one row per part of the network, result and note, with the number of tensors."""
    depth = 2 if len({name.partition(".")[0] for name in (*results, *left)}) == 1 else 1

    def part(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    counts = Counter((part(name), result, note) for name, (result, note) in results.items())
    rows = [
        _row("tensors", f"{name} ({count})", "" if result == "new" else name, result, note)
        for (name, result, note), count in counts.items()
    ]
    return rows + [
        _row("tensors", "", f"{name} ({count})", "left") for name, count in Counter(map(part, left)).items()
    ]
