"""From logits on the network's grid to labels or probabilities on the file's, slice by slice.

Logits are interpolated linearly and the largest class is taken. Where all source voxels around a target voxel
agree on their largest class, so does every convex mixture of them, in floating point too, because rounding never
turns a larger product or sum into a smaller one. Only the voxels between different classes, a few in a hundred, are
therefore interpolated; the label map is that of interpolating everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.inference.slab import check_finite
from medseg.resampling import AxisMap, nearest_index

_CHUNK = 1 << 15  # voxels interpolated at once, which bounds the memory whatever the map looks like


@dataclass(frozen=True)
class Between:
    """Between which source samples each target sample of an axis lies: ``(1 - weight) lower + weight upper``.

    Attributes:
        lower, upper: source indices `(n_out,)` int64. weight: `(n_out,)` float32 in [0, 1).
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @classmethod
    def of(cls, axis_map: AxisMap, *, nearest: bool = False) -> Between:
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

    def part(self, targets: slice) -> tuple[Between, slice]:
        """The same for some of the targets, and the sources that they need, which then count from 0."""
        lower, upper, weight = self.lower[targets], self.upper[targets], self.weight[targets]
        first, last = int(lower.min()), int(upper.max())
        return Between(lower - first, upper - first, weight), slice(first, last + 1)

    def to(self, device: torch.device) -> Between:
        """The same on another device."""
        return Between(self.lower.to(device), self.upper.to(device), self.weight.to(device))


def export_labels(
    blocks: Iterable[Tensor],
    axes: Sequence[Between],
    values: NDArray[Any],
    out: NDArray[Any],
    on_probabilities: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> None:
    """Write the label of every target voxel.

    Args:
        blocks: logits `(slices, *rest, k)`, in order; each is read before the next is asked for.
        axes: one for the slices and one for each of the two other axes.
        values: the value in files of each class.
        out: receives the labels, `(slices, *rest)` of the target grid; may be a view in any layout.
        on_probabilities: called with each target slice's number and the softmax `(*rest, k)` of its logits.

    Raises:
        ModelError: logits that are not finite.
    """
    table = torch.from_numpy(values.astype(np.int32))
    for target, lower, upper, weight, across in _target_slices(blocks, axes):
        out[target] = table[_slice_classes(lower, upper, weight, across).cpu()].numpy()
        if on_probabilities is not None:
            on_probabilities(target, _slice_probabilities(lower, upper, weight, across))


@dataclass(frozen=True)
class _Slice:
    """Logits `(a, b, k)` of one source slice and the largest class of each voxel."""

    logits: Tensor
    classes: Tensor
    owned: bool = False

    @classmethod
    def of(cls, logits: Tensor) -> _Slice:
        largest, classes = logits.max(-1)
        check_finite(largest)
        return cls(logits, classes)

    def kept(self) -> _Slice:
        """The same in its own memory."""
        return self if self.owned else _Slice(self.logits.clone(), self.classes, owned=True)


_TargetSlice = tuple[int, _Slice, _Slice, float, tuple[Between, Between]]


def _target_slices(blocks: Iterable[Tensor], axes: Sequence[Between]) -> Iterator[_TargetSlice]:
    """For each target slice: its number, the source slices around it, the weight of the upper, the other axes."""
    along = axes[0]
    held: dict[int, _Slice] = {}
    received = target = 0
    for block in blocks:
        across = (axes[1].to(block.device), axes[2].to(block.device))
        for logits in block:
            held[received] = _Slice.of(logits)
            received += 1
        while target < len(along.lower) and along.upper[target] < received:
            lower, upper = held[int(along.lower[target])], held[int(along.upper[target])]
            yield target, lower, upper, float(along.weight[target]), across
            target += 1
        # The next block may take the memory of this one; the slices still needed are few.
        first = int(along.lower[target]) if target < len(along.lower) else received
        held = {index: item.kept() for index, item in held.items() if index >= first}


def _slice_classes(lower: _Slice, upper: _Slice, weight: float, across: Sequence[Between]) -> Tensor:
    """Largest class of each voxel of one target slice, `(A, B)` int64."""
    a, b = across
    classes = lower.classes[a.lower][:, b.lower]
    same = torch.ones_like(classes, dtype=torch.bool)
    for source in (lower, upper) if weight > 0 else (lower,):
        for i, j in ((a.lower, b.lower), (a.lower, b.upper), (a.upper, b.lower), (a.upper, b.upper)):
            same &= source.classes[i][:, j] == classes
    rows, columns = torch.nonzero(~same, as_tuple=True)
    for start in range(0, len(rows), _CHUNK):
        i, j = rows[start : start + _CHUNK], columns[start : start + _CHUNK]
        mixed = _mixed(lower.logits, a, b, i, j)
        if weight > 0:
            mixed = _between(mixed, _mixed(upper.logits, a, b, i, j), weight)
        classes[i, j] = mixed.argmax(-1)
    return classes


def _slice_probabilities(
    lower: _Slice, upper: _Slice, weight: float, across: Sequence[Between]
) -> NDArray[np.float32]:
    """Softmax of the interpolated logits of one target slice, `(A, B, k)`."""
    mixed = _dense(lower.logits, *across)
    if weight > 0:
        mixed = _between(mixed, _dense(upper.logits, *across), weight)
    found: NDArray[np.float32] = torch.softmax(mixed, -1).cpu().numpy()
    return found


def _mixed(logits: Tensor, a: Between, b: Between, i: Tensor, j: Tensor) -> Tensor:
    """Logits `(n, k)` float32 of a source slice at n target voxels, bilinear."""
    low, high = (_on_row(logits, row[i], b, j) for row in (a.lower, a.upper))
    return _between(low, high, a.weight[i, None])


def _on_row(logits: Tensor, row: Tensor, b: Between, j: Tensor) -> Tensor:
    flat, first = logits.reshape(-1, logits.shape[-1]), row * logits.shape[1]
    low, high = (flat.index_select(0, first + column[j]).float() for column in (b.lower, b.upper))
    return _between(low, high, b.weight[j, None])


def _dense(logits: Tensor, a: Between, b: Between) -> Tensor:
    """Logits `(A, B, k)` float32 of a source slice at all target voxels, bilinear, in the order of `_mixed`."""
    low, high = (logits.index_select(1, column).float() for column in (b.lower, b.upper))
    rows = _between(low, high, b.weight[:, None])
    low, high = (rows.index_select(0, row) for row in (a.lower, a.upper))
    return _between(low, high, a.weight[:, None, None])


def _between(low: Tensor, high: Tensor, weight: Tensor | float) -> Tensor:
    """``(1 - weight) low + weight high``, in the memory of `low` and `high`."""
    return low.mul_(1 - weight).add_(high.mul_(weight))
