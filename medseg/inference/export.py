"""From logits on the network's grid to labels on the file's, slice by slice.

Logits are interpolated linearly and the largest class is taken. Where all source voxels around a target voxel
agree on their largest class, so does every convex mixture of them, in floating point too, because rounding never
turns a larger product or sum into a smaller one. Only the voxels between different classes, a few in a hundred, are
therefore interpolated; the label map is that of interpolating everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.resampling import AxisMap

_CHUNK = 1 << 15  # voxels interpolated at once, which bounds the memory whatever the map looks like


def export_labels(
    blocks: Iterable[Tensor], maps: Sequence[AxisMap], values: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write the label of every target voxel.

    Args:
        blocks: logits `(slices, *rest, k)`, in order; each is read before the next is asked for.
        maps: one `AxisMap` for the slices and for each of the two other axes.
        values: the value in files of each class.
        out: receives the labels, `(slices, *rest)` of the target grid; may be a view in any layout.
    """
    along, *across = (_Axis.of(axis_map) for axis_map in maps)
    table = torch.from_numpy(values.astype(np.int32))
    held: dict[int, _Slice] = {}
    received = target = 0
    for block in blocks:
        for logits in block:
            held[received] = _Slice.of(logits)
            received += 1
        while target < len(along.lower) and along.upper[target] < received:
            lower, upper = held[int(along.lower[target])], held[int(along.upper[target])]
            classes = _slice_classes(lower, upper, float(along.weight[target]), across)
            out[target] = table[classes].cpu().numpy()
            target += 1
        # The next block may take the memory of this one; the slices still needed are few.
        first = int(along.lower[target]) if target < len(along.lower) else received
        held = {index: item.kept() for index, item in held.items() if index >= first}


@dataclass(frozen=True)
class _Axis:
    """Between which source samples each target sample lies: ``(1 - weight) lower + weight upper``."""

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @classmethod
    def of(cls, axis_map: AxisMap) -> _Axis:
        position = np.round(np.arange(axis_map.n_out) * axis_map.scale + axis_map.offset, 9)
        position = np.clip(position, 0, axis_map.n_in - 1)
        lower = np.floor(position).astype(np.int64)
        weight = (position - lower).astype(np.float32)
        upper = np.minimum(lower + (weight > 0), axis_map.n_in - 1)
        return cls(*(torch.from_numpy(array) for array in (lower, upper, weight)))


@dataclass(frozen=True)
class _Slice:
    """Logits `(a, b, k)` of one source slice and the largest class of each voxel."""

    logits: Tensor
    classes: Tensor
    owned: bool = False

    @classmethod
    def of(cls, logits: Tensor) -> _Slice:
        return cls(logits, logits.argmax(-1))

    def kept(self) -> _Slice:
        """The same in its own memory."""
        return self if self.owned else _Slice(self.logits.clone(), self.classes, owned=True)


def _slice_classes(lower: _Slice, upper: _Slice, weight: float, across: Sequence[_Axis]) -> Tensor:
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


def _mixed(logits: Tensor, a: _Axis, b: _Axis, i: Tensor, j: Tensor) -> Tensor:
    """Logits `(n, k)` of a source slice at n target voxels, bilinear."""
    low, high = (_on_row(logits, row[i], b, j) for row in (a.lower, a.upper))
    return _between(low, high, a.weight[i, None])


def _on_row(logits: Tensor, row: Tensor, b: _Axis, j: Tensor) -> Tensor:
    flat, first = logits.reshape(-1, logits.shape[-1]), row * logits.shape[1]
    low, high = (flat.index_select(0, first + column[j]) for column in (b.lower, b.upper))
    return _between(low, high, b.weight[j, None])


def _between(low: Tensor, high: Tensor, weight: Tensor | float) -> Tensor:
    """``(1 - weight) low + weight high``, in the memory of `low` and `high`."""
    return low.mul_(1 - weight).add_(high.mul_(weight))
