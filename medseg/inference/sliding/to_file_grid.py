"""Export: from logits on the network's grid to labels or probabilities on the file's grid, slice by slice.

The definition is simple: interpolate the logits linearly at each voxel of the file, then apply the label rule. The result
is computed with far less work by *labelling before interpolating*. Each voxel of the network's grid is labelled first. Where
all source voxels around a target voxel have the same class, every convex mixture of their logits has it, too, in floating
point as well (see `medseg.inference.sliding.labelling`), and the class is simply copied. Only target voxels between
different classes, a few per cent, are interpolated. The label map is the same as that of interpolating everything.

Source slices arrive in blocks from the rolling slab. A target slice is written as soon as the source slices on both sides
have arrived; only the last source slices are kept.
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

from medseg.inference.sliding.labelling import FiniteCheck, LabelRule
from medseg.volumes.resampling import AxisMap, nearest_index

_CHUNK = 1 << 15  # voxels interpolated at once, which bounds the memory for any label map
_VOXELS_AT_ONCE = 1 << 18  # voxels that are labelled at once


@dataclass(frozen=True)
class LinearWeights:
    """Linear interpolation along one axis: ``(1 - weight) * source[lower] + weight * source[upper]``.

    Attributes:
        lower: Source index below each target sample, `(n_out,)` int64.
        upper: Source index above each target sample, `(n_out,)` int64.
        weight: Weight of the upper source sample, `(n_out,)` float32 in [0, 1).

    Examples:
        >>> axis = LinearWeights.from_axis_map(AxisMap.resize(2, 4))
        >>> axis.lower.tolist(), axis.upper.tolist(), axis.weight.tolist()
        ([0, 0, 0, 1], [0, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @classmethod
    def from_axis_map(cls, axis_map: AxisMap, *, nearest: bool = False) -> LinearWeights:
        """Return the weights for a mapping between two axes; border samples are repeated.

        Args:
            axis_map: Positions of the target samples on the source axis.
            nearest: Take the nearest source sample instead of interpolating.

        Returns:
            The two source samples of each target sample and the weight of the upper one, in [0, 1).
        """
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
        """Whether each target sample equals the source sample with the same index."""
        return torch.equal(self.lower, torch.arange(len(self.lower))) and not self.weight.any()

    def part(self, targets: slice) -> tuple[LinearWeights, slice]:
        """Return the weights of some targets, and the sources that they need.

        Args:
            targets: The targets.

        Returns:
            Weights whose source indices count from the first source needed, and the slice of sources.
        """
        lower, upper, weight = self.lower[targets], self.upper[targets], self.weight[targets]
        first, last = int(lower.min()), int(upper.max())
        return LinearWeights(lower - first, upper - first, weight), slice(first, last + 1)

    def shifted(self, by: int) -> LinearWeights:
        """Return the weights for a source that begins `by` samples earlier."""
        return LinearWeights(self.lower + by, self.upper + by, self.weight) if by else self

    def to(self, device: torch.device) -> LinearWeights:
        """Return the weights on another device."""
        return LinearWeights(self.lower.to(device), self.upper.to(device), self.weight.to(device))


def export_labels(
    blocks: Iterable[Tensor],
    axes: Sequence[LinearWeights],
    rule: LabelRule,
    out: NDArray[Any],
    on_probabilities: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> None:
    """Write the label of every target voxel; logits are on the CPU, see `device_export` for those on other devices.

    Args:
        blocks: Blocks of logits `(slices, *rest, k)`, in order; each is read before the next one is requested.
        axes: Interpolation along the slice axis and the two other axes.
        rule: How logits become labels.
        out: Array to fill with the labels, `(slices, *rest)` of the target grid; may be a view with any strides.
        on_probabilities: Called with the index of each target slice and its probabilities `(*rest, k)`.

    Raises:
        ModelError: Logits are NaN or infinite.
    """
    table = torch.from_numpy(rule.values.astype(np.int32))
    check = FiniteCheck()
    if on_probabilities is None and all(axis.is_identity for axis in axes):
        return _export_without_resampling(blocks, rule, table, out, check)
    for target, lower, upper, weight, across in _target_slices(blocks, axes, rule, check):
        out[target] = table[_slice_classes(lower, upper, weight, across, rule, check)].numpy()
        if on_probabilities is not None:
            mixed = _slice_logits(lower, upper, weight, across)
            on_probabilities(target, rule.probabilities(mixed).numpy())
    return None


def _export_without_resampling(
    blocks: Iterable[Tensor], rule: LabelRule, table: Tensor, out: NDArray[Any], check: FiniteCheck
) -> None:
    """Write the labels where every target voxel is the source voxel with the same index."""
    done = 0
    for block in blocks:
        for piece in split_slices(block[: len(out) - done, : out.shape[1], : out.shape[2]]):
            out[done : done + len(piece)] = table[rule.classes(piece, check).long()].numpy()
            done += len(piece)


def split_slices(block: Tensor) -> Sequence[Tensor]:
    """Split a block along its slices, so that small slices are processed together and large ones take little memory."""
    return (
        block.split(max(1, _VOXELS_AT_ONCE // max(1, block[0].numel() // block.shape[-1])))
        if len(block)
        else ()
    )


@dataclass(frozen=True)
class _Slice:
    """One source slice.

    Attributes:
        logits: Logits `(a, b, k)`.
        classes: Class of each voxel, `(a, b)` int16.
        uniform: Whether a voxel and its upper neighbours along both axes have the same class, `(a, b)`.
        owned: Whether the logits have memory of their own instead of the block's.
    """

    logits: Tensor
    classes: Tensor
    uniform: Tensor
    owned: bool = False

    @classmethod
    def from_block(cls, block: Tensor, rule: LabelRule, check: FiniteCheck) -> Iterator[_Slice]:
        """Yield the slices of a block of logits `(slices, a, b, k)`, with the class of each voxel."""
        for piece in split_slices(block):
            classes = rule.classes(piece, check)
            uniform = torch.ones_like(classes, dtype=torch.bool)
            uniform[:, :-1] &= classes[:, :-1] == classes[:, 1:]
            uniform[..., :-1] &= classes[..., :-1] == classes[..., 1:]
            uniform[:, :-1, :-1] &= classes[:, :-1, :-1] == classes[:, 1:, 1:]
            yield from map(cls, piece, classes, uniform)

    def kept(self) -> _Slice:
        """Return the slice with memory of its own."""
        return self if self.owned else _Slice(self.logits.clone(), self.classes, self.uniform, owned=True)


@dataclass(frozen=True)
class _InPlaneWeights:
    """Interpolation within a slice.

    Attributes:
        a: The first axis of the slice.
        b: The second axis of the slice.
        corner: Flat index of the lower corner of each target voxel in a source slice.
    """

    a: LinearWeights
    b: LinearWeights
    corner: Tensor

    @classmethod
    def from_axes(cls, a: LinearWeights, b: LinearWeights, columns: int) -> _InPlaneWeights:
        return cls(a, b, a.lower[:, None] * columns + b.lower)


_TargetSlice = tuple[int, _Slice, _Slice, float, _InPlaneWeights]


def _target_slices(
    blocks: Iterable[Tensor], axes: Sequence[LinearWeights], rule: LabelRule, check: FiniteCheck
) -> Iterator[_TargetSlice]:
    """Yield each target slice: index, source slices below and above, weight of the upper one, and in-plane weights."""
    along = axes[0]
    held: dict[int, _Slice] = {}
    across: _InPlaneWeights | None = None
    received = target = 0
    for block in blocks:
        if across is None:
            across = _InPlaneWeights.from_axes(axes[1], axes[2], block.shape[2])
        for item in _Slice.from_block(block, rule, check):
            held[received] = item
            received += 1
        while target < len(along.lower) and along.upper[target] < received:
            lower, upper = held[int(along.lower[target])], held[int(along.upper[target])]
            yield target, lower, upper, float(along.weight[target]), across
            target += 1
        # The next block may reuse the memory of this one, so the few slices still needed are copied.
        first = int(along.lower[target]) if target < len(along.lower) else received
        held = {index: item.kept() for index, item in held.items() if index >= first}


def _slice_classes(
    lower: _Slice,
    upper: _Slice,
    weight: float,
    across: _InPlaneWeights,
    rule: LabelRule,
    check: FiniteCheck,
) -> Tensor:
    """Return the class of each voxel of one target slice, `(A, B)` int64."""
    uniform = lower.uniform
    if weight > 0:
        uniform = uniform & upper.uniform & (lower.classes == upper.classes)
    classes = lower.classes.flatten()[across.corner].long()
    rows, columns = torch.nonzero(~uniform.flatten()[across.corner], as_tuple=True)
    plane: Callable[[Tensor], Tensor] | None = None
    if 4 * len(rows) > uniform.numel():  # many corners are needed, most of them more than once
        dense = _between_slices(lower.logits, upper.logits, weight).flatten(0, 1)
        plane = partial(dense.index_select, 0)
    for start in range(0, len(rows), _CHUNK):
        i, j = rows[start : start + _CHUNK], columns[start : start + _CHUNK]
        at = plane or partial(_logits_between, lower.logits.flatten(0, 1), upper.logits.flatten(0, 1), weight)
        classes[i, j] = rule.classes(_bilinear(at, across, lower.logits.shape[1], i, j), check).long()
    return classes


def _logits_between(lower: Tensor, upper: Tensor, weight: float, index: Tensor) -> Tensor:
    """Return logits `(n, k)` between two slices `(voxels, k)` at some voxels."""
    low = lower.index_select(0, index)
    return _between_slices(low, upper.index_select(0, index) if weight > 0 else low, weight)


def _slice_logits(lower: _Slice, upper: _Slice, weight: float, across: _InPlaneWeights) -> Tensor:
    """Return the interpolated logits of one target slice, `(A, B, k)`."""
    plane = _between_slices(lower.logits, upper.logits, weight)
    low, high = (plane.index_select(1, column) for column in (across.b.lower, across.b.upper))
    rows = lerp_in_place(low, high, across.b.weight[:, None])
    low, high = (rows.index_select(0, row) for row in (across.a.lower, across.a.upper))
    return lerp_in_place(low, high, across.a.weight[:, None, None])


def _bilinear(
    at: Callable[[Tensor], Tensor], across: _InPlaneWeights, columns: int, i: Tensor, j: Tensor
) -> Tensor:
    """Return logits `(n, k)` at n target voxels by bilinear interpolation; `at` returns those of source voxels."""
    a, b = across.a, across.b
    low, high = (
        lerp_in_place(at(row[i] * columns + b.lower[j]), at(row[i] * columns + b.upper[j]), b.weight[j, None])
        for row in (a.lower, a.upper)
    )
    return lerp_in_place(low, high, a.weight[i, None])


def _between_slices(lower: Tensor, upper: Tensor, weight: float) -> Tensor:
    """Return logits between two slices in float32, in memory of their own."""
    low = lower.to(torch.float32, copy=True)
    return low if weight == 0 else lerp_in_place(low, upper.float(), torch.tensor(weight))


def lerp_in_place(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Return ``(1 - weight) * low + weight * high`` in the memory of `low`."""
    return low.mul_(1 - weight).addcmul_(high, weight)
