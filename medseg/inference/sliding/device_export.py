"""Export on the device that holds the logits: only labels come back to the host.

`medseg.inference.sliding.to_file_grid` interpolates only between classes, which needs the number of such voxels, and asking a
device for a number waits for it. A device interpolates every voxel in less time. Both give the same labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.inference.sliding.labelling import FiniteCheck, LabelRule
from medseg.inference.sliding.to_file_grid import LinearWeights, lerp_in_place, split_slices
from medseg.runtime.devices import HostCopy

VALUES_AT_ONCE = 1 << 24
"""Logits that are interpolated at once: 64 MiB, of which a few copies are held."""


def export_on_device(
    blocks: Iterable[Tensor],
    axes: Sequence[LinearWeights],
    rule: LabelRule,
    out: NDArray[Any],
    on_probabilities: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> None:
    """Write the label of every target voxel; see `medseg.inference.sliding.to_file_grid.export_labels`.

    Nothing waits for the device before the labels of the next block are on their way, except for probabilities.

    Args:
        blocks: Blocks of logits `(slices, *rest, k)`, in order; each is read before the next one is requested.
        axes: Interpolation along the slice axis and the two other axes, on the CPU.
        rule: How logits become labels.
        out: Array to fill with the labels, `(slices, *rest)` of the target grid; may be a view with any strides.
        on_probabilities: Called with the index of each target slice and its probabilities `(*rest, k)`.

    Raises:
        ModelError: Logits are NaN or infinite; known when everything else is done.
    """
    check, labels = FiniteCheck(), _Labels(rule, out)
    if on_probabilities is None and all(axis.is_identity for axis in axes):
        done = 0
        for block in blocks:
            for piece in split_slices(block[: len(out) - done, : out.shape[1], : out.shape[2]]):
                labels.write(done, rule.classes(piece, check))
                done += len(piece)
    else:
        for target, lower, upper, weight, rows in _target_slices(blocks, axes):
            classes, probabilities = [], []
            for some in rows:
                logits = some.logits(lower, upper, weight)
                classes.append(rule.classes(logits, check))
                if on_probabilities is not None:
                    probabilities.append(rule.probabilities(logits).cpu())
            labels.write(target, torch.cat(classes)[None])
            if on_probabilities is not None:
                on_probabilities(target, torch.cat(probabilities).numpy())
    labels.finish()
    check.finish()


class _Labels:
    """Labels on their way from a device into an array.

    Args:
        rule: Rule with the label value of each class.
        out: Array to fill.
    """

    def __init__(self, rule: LabelRule, out: NDArray[Any]) -> None:
        self._values = rule.values.astype(out.dtype)
        self._out = out
        self._table: Tensor | None = None
        self._pending: deque[tuple[int, HostCopy]] = deque()

    def write(self, first: int, classes: Tensor) -> None:
        """Start to write slices from `first` on; earlier ones are written completely."""
        if (
            self._table is None
        ):  # torch computes little with unsigned integers, but only copies are needed here
            signed = np.dtype(f"{'u' if self._values.itemsize == 1 else 'i'}{self._values.itemsize}")
            self._table = torch.from_numpy(self._values.view(signed)).to(classes.device)
        labels = self._table[classes.long()]
        self._pending.append((first, HostCopy(labels)))
        self._complete(keep=_LABEL_SLICES)

    def finish(self) -> None:
        """Write everything."""
        self._complete(keep=0)

    def _complete(self, keep: int) -> None:
        while len(self._pending) > keep:
            first, copy = self._pending.popleft()
            labels = copy.tensor().numpy().view(self._out.dtype)
            self._out[first : first + len(labels)] = labels


_LABEL_SLICES = 256  # copies that may be under way, of a byte or two per voxel


@dataclass(frozen=True)
class _Rows:
    """Rows of a target slice that are interpolated at once.

    Attributes:
        sources: Rows of the source that they need.
        a: Interpolation along the rows, from the first of these, on the device.
        b: Interpolation within a row, on the device.
    """

    sources: slice
    a: LinearWeights
    b: LinearWeights

    @classmethod
    def cover(cls, a: LinearWeights, b: LinearWeights, block: Tensor) -> list[_Rows]:
        """Return pieces of a target slice that together cover it once."""
        width = max(len(b.lower), block.shape[2]) * block.shape[-1]
        rows = max(1, VALUES_AT_ONCE // width)
        across = b.to(block.device)
        pieces = []
        for start in range(0, len(a.lower), rows):
            part, sources = a.part(slice(start, start + rows))
            pieces.append(cls(sources, part.to(block.device), across))
        return pieces

    def logits(self, lower: Tensor, upper: Tensor, weight: Tensor | None) -> Tensor:
        """Return the interpolated logits `(rows, B, k)` between two source slices `(a, b, k)`, in float32."""
        plane = lower[self.sources].to(torch.float32, copy=True)
        if weight is not None:
            plane = lerp_in_place(plane, upper[self.sources].float(), weight)
        low, high = (plane.index_select(1, column) for column in (self.b.lower, self.b.upper))
        rows = lerp_in_place(low, high, self.b.weight[:, None])
        low, high = (rows.index_select(0, row) for row in (self.a.lower, self.a.upper))
        return lerp_in_place(low, high, self.a.weight[:, None, None])


def _target_slices(
    blocks: Iterable[Tensor], axes: Sequence[LinearWeights]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None, list[_Rows]]]:
    """Yield each target slice: index, source slices below and above, weight of the upper one (None for 0), and its rows."""
    along = axes[0]
    lower, upper = along.lower.tolist(), along.upper.tolist()
    between = (along.weight > 0).tolist()
    weights: Tensor | None = None
    pieces: list[_Rows] = []
    kept: dict[int, Tensor] = {}
    received = target = 0
    for block in blocks:
        if weights is None:
            weights = along.weight.to(block.device)
            pieces = _Rows.cover(axes[1], axes[2], block)
        held = {**kept, **dict(zip(count(received), block, strict=False))}
        received += len(block)
        while target < len(lower) and upper[target] < received:
            weight = weights[target] if between[target] else None
            yield target, held[lower[target]], held[upper[target]], weight, pieces
            target += 1
        # The next block may reuse the memory of this one, so the few slices still needed are copied.
        first = lower[target] if target < len(lower) else received
        kept = {i: kept[i] if i in kept else item.clone() for i, item in held.items() if i >= first}
