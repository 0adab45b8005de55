"""From logits on the network's grid to labels or probabilities on the file's, slice by slice.

Logits are interpolated linearly and a class is decided on. Where all source voxels around a target voxel agree on it,
so does every convex mixture of them, in floating point too; see `Decision`. Only the voxels between different classes,
a few in a hundred, are therefore interpolated; the label map is that of interpolating everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.inference.sliding.labelling import LabelRule
from medseg.volumes.resampling import AxisMap, nearest_index

_CHUNK = 1 << 15  # voxels interpolated at once, which bounds the memory whatever the map looks like
_VOXELS_AT_ONCE = 1 << 18  # voxels whose classes are told at once


@dataclass(frozen=True)
class LinearWeights:
    """Between which source samples each target sample of an axis lies: ``(1 - weight) lower + weight upper``.

    Attributes:
        lower, upper: source indices `(n_out,)` int64. weight: `(n_out,)` float32 in [0, 1).
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @classmethod
    def from_axis_map(cls, axis_map: AxisMap, *, nearest: bool = False) -> LinearWeights:
        """Linear interpolation along an axis, or its nearest sample; borders repeat."""
        if nearest:
            index = torch.from_numpy(nearest_index(axis_map).astype(np.int64))
            return cls(index, index, torch.zeros(len(index)))
        position = np.round(np.arange(axis_map.n_out) * axis_map.scale + axis_map.offset, 9)
        position = np.clip(position, 0, axis_map.n_in - 1)
        lower = np.floor(position).astype(np.int64)
        weight = (position - lower).astype(np.float32)
        upper = np.minimum(lower + (weight > 0), axis_map.n_in - 1)
        return cls(*(torch.from_numpy(array) for array in (lower, upper, weight)))

    @property
    def is_identity(self) -> bool:
        """Whether each target sample is the source sample of its number."""
        return torch.equal(self.lower, torch.arange(len(self.lower))) and not self.weight.any()

    def part(self, targets: slice) -> tuple[LinearWeights, slice]:
        """The same for some of the targets, and the sources that they need, which then count from 0."""
        lower, upper, weight = self.lower[targets], self.upper[targets], self.weight[targets]
        first, last = int(lower.min()), int(upper.max())
        return LinearWeights(lower - first, upper - first, weight), slice(first, last + 1)

    def to(self, device: torch.device) -> LinearWeights:
        """The same on another device."""
        return LinearWeights(self.lower.to(device), self.upper.to(device), self.weight.to(device))


def export_labels(
    blocks: Iterable[Tensor],
    axes: Sequence[LinearWeights],
    rule: LabelRule,
    out: NDArray[Any],
    on_probabilities: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> None:
    """Write the label of every target voxel.

    Args:
        blocks: logits `(slices, *rest, k)`, in order; each is read before the next is asked for.
        axes: one for the slices and one for each of the two other axes.
        rule: how logits become labels.
        out: receives the labels, `(slices, *rest)` of the target grid; may be a view in any layout.
        on_probabilities: called with each target slice's number and its probabilities `(*rest, k)`.

    Raises:
        ModelError: logits that are not finite.
    """
    table = torch.from_numpy(rule.values.astype(np.int32))
    if on_probabilities is None and all(axis.is_identity for axis in axes):
        return _export_without_resampling(blocks, rule, table, out)
    for target, lower, upper, weight, across in _target_slices(blocks, axes, rule):
        out[target] = table[_slice_classes(lower, upper, weight, across, rule).cpu()].numpy()
        if on_probabilities is not None:
            mixed = _slice_logits(lower, upper, weight, across)
            on_probabilities(target, rule.probabilities(mixed).cpu().numpy())
    return None


def _export_without_resampling(
    blocks: Iterable[Tensor], rule: LabelRule, table: Tensor, out: NDArray[Any]
) -> None:
    """`export_labels` where every target voxel is a source voxel, the first is the first, and so on."""
    done = 0
    for block in blocks:
        for piece in _pieces(block[: len(out) - done, : out.shape[1], : out.shape[2]]):
            out[done : done + len(piece)] = table[rule.classes(piece).cpu().long()].numpy()
            done += len(piece)


def _pieces(block: Tensor) -> Sequence[Tensor]:
    """Some slices at a time, so that small ones are handled together and large ones take little memory."""
    return (
        block.split(max(1, _VOXELS_AT_ONCE // max(1, block[0].numel() // block.shape[-1])))
        if len(block)
        else ()
    )


@dataclass(frozen=True)
class _Slice:
    """One source slice.

    Attributes:
        logits: `(a, b, k)`.
        classes: class of each voxel, `(a, b)` int16.
        even: whether a voxel and its upper neighbours along both axes agree on it, `(a, b)`.
    """

    logits: Tensor
    classes: Tensor
    even: Tensor
    owned: bool = False

    @classmethod
    def each(cls, block: Tensor, rule: LabelRule) -> Iterator[_Slice]:
        """The slices of a block of logits `(slices, a, b, k)`."""
        for piece in _pieces(block):
            classes = rule.classes(piece)
            even = torch.ones_like(classes, dtype=torch.bool)
            even[:, :-1] &= classes[:, :-1] == classes[:, 1:]
            even[..., :-1] &= classes[..., :-1] == classes[..., 1:]
            even[:, :-1, :-1] &= classes[:, :-1, :-1] == classes[:, 1:, 1:]
            yield from map(cls, piece, classes, even)

    def kept(self) -> _Slice:
        """The same in its own memory."""
        return self if self.owned else _Slice(self.logits.clone(), self.classes, self.even, owned=True)


@dataclass(frozen=True)
class _InPlaneWeights:
    """The two axes of a slice, and the place in a source slice of each target voxel's lower corner."""

    a: LinearWeights
    b: LinearWeights
    corner: Tensor

    @classmethod
    def from_axes(cls, a: LinearWeights, b: LinearWeights, columns: int) -> _InPlaneWeights:
        return cls(a, b, a.lower[:, None] * columns + b.lower)


_TargetSlice = tuple[int, _Slice, _Slice, float, _InPlaneWeights]


def _target_slices(
    blocks: Iterable[Tensor], axes: Sequence[LinearWeights], rule: LabelRule
) -> Iterator[_TargetSlice]:
    """For each target slice: its number, the source slices around it, the weight of the upper, the other axes."""
    along = axes[0]
    held: dict[int, _Slice] = {}
    across: _InPlaneWeights | None = None
    received = target = 0
    for block in blocks:
        if across is None:
            a, b = (axis.to(block.device) for axis in axes[1:])
            across = _InPlaneWeights.from_axes(a, b, block.shape[2])
        for item in _Slice.each(block, rule):
            held[received] = item
            received += 1
        while target < len(along.lower) and along.upper[target] < received:
            lower, upper = held[int(along.lower[target])], held[int(along.upper[target])]
            yield target, lower, upper, float(along.weight[target]), across
            target += 1
        # The next block may take the memory of this one; the slices still needed are few.
        first = int(along.lower[target]) if target < len(along.lower) else received
        held = {index: item.kept() for index, item in held.items() if index >= first}


def _slice_classes(
    lower: _Slice, upper: _Slice, weight: float, across: _InPlaneWeights, rule: LabelRule
) -> Tensor:
    """Class of each voxel of one target slice, `(A, B)` int64."""
    even = lower.even
    if weight > 0:
        even = even & upper.even & (lower.classes == upper.classes)
    classes = lower.classes.flatten()[across.corner].long()
    rows, columns = torch.nonzero(~even.flatten()[across.corner], as_tuple=True)
    plane: Callable[[Tensor], Tensor] | None = None
    if 4 * len(rows) > even.numel():  # most corners are wanted, many of them more than once
        dense = _between_slices(lower.logits, upper.logits, weight).flatten(0, 1)
        plane = partial(dense.index_select, 0)
    for start in range(0, len(rows), _CHUNK):
        i, j = rows[start : start + _CHUNK], columns[start : start + _CHUNK]
        at = plane or partial(_logits_between, lower.logits.flatten(0, 1), upper.logits.flatten(0, 1), weight)
        classes[i, j] = rule.classes(_bilinear(at, across, lower.logits.shape[1], i, j)).long()
    return classes


def _logits_between(lower: Tensor, upper: Tensor, weight: float, index: Tensor) -> Tensor:
    """Logits `(n, k)` between two slices `(voxels, k)` at some voxels."""
    low = lower.index_select(0, index)
    return _between_slices(low, upper.index_select(0, index) if weight > 0 else low, weight)


def _slice_logits(lower: _Slice, upper: _Slice, weight: float, across: _InPlaneWeights) -> Tensor:
    """The interpolated logits of one target slice, `(A, B, k)`."""
    plane = _between_slices(lower.logits, upper.logits, weight)
    low, high = (plane.index_select(1, column) for column in (across.b.lower, across.b.upper))
    rows = _lerp_in_place(low, high, across.b.weight[:, None])
    low, high = (rows.index_select(0, row) for row in (across.a.lower, across.a.upper))
    return _lerp_in_place(low, high, across.a.weight[:, None, None])


def _bilinear(
    at: Callable[[Tensor], Tensor], across: _InPlaneWeights, columns: int, i: Tensor, j: Tensor
) -> Tensor:
    """Logits `(n, k)` at n target voxels, bilinear; `at` gives those at voxels of the source plane."""
    a, b = across.a, across.b
    low, high = (
        _lerp_in_place(
            at(row[i] * columns + b.lower[j]), at(row[i] * columns + b.upper[j]), b.weight[j, None]
        )
        for row in (a.lower, a.upper)
    )
    return _lerp_in_place(low, high, a.weight[i, None])


def _between_slices(lower: Tensor, upper: Tensor, weight: float) -> Tensor:
    """Logits between two slices in float32, in memory of their own."""
    low = lower.to(torch.float32, copy=True)
    return low if weight == 0 else _lerp_in_place(low, upper.float(), torch.tensor(weight, device=low.device))


def _lerp_in_place(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """``(1 - weight) low + weight high``, in the memory of `low`."""
    return low.mul_(1 - weight).addcmul_(high, weight)
