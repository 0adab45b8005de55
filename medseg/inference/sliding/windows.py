"""Sliding windows: from an image and a network to logits, a block of finished slices at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medseg.errors import ConfigError
from medseg.inference.sliding.slab import Box, ImageSlab, InMemoryImage, LogitSlab, Slices
from medseg.runtime.progress import Progress

Blend = Literal["gaussian", "constant"]
Network = Callable[[Tensor], Tensor]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SlidingWindow:
    """How an image is cut into windows and their logits are put together.

    Attributes:
        window: voxels per axis.
        overlap: share of a window that its neighbour covers, in [0, 1).
        batch_size: windows per call of the network.
        blend: weights inside a window.
        mirror_axes: spatial axes; logits are the mean over all combinations of flips along them.
        sums: type in which logits are put together, float32 or float16.
        device: where image and sums are held; the network may be elsewhere.
        empty: tells whether a window `(c, *window)` holds nothing; such windows are not predicted.
        nothing: logits `(k,)` of voxels that lie in no window that was predicted.

    Raises:
        ConfigError: overlap out of range, or a window that is empty.
    """

    window: tuple[int, ...]
    overlap: float = 0.5
    batch_size: int = 1
    blend: Blend = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    sums: torch.dtype = torch.float32
    device: torch.device = _CPU
    is_empty: Callable[[Tensor], bool] | None = None
    background: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(
                f"overlap: found {self.overlap}, expected 0 <= overlap < 1. Use 0.5, for example."
            )

    @property
    def num_outputs(self) -> int:
        """How many logits a voxel has."""
        return len(self.background)

    def layout(self, shape: Sequence[int], columns: slice | None = None) -> WindowLayout:
        """Where the windows of an image of this shape lie.

        Args:
            shape: voxels per axis.
            columns: part of the second axis that results are wanted for; None for all.
        """
        if len(self.window) != len(shape) or min(self.window) < 1:
            raise ConfigError(
                f"window: found {self.window}, expected {len(shape)} positive sizes. Correct it."
            )
        sizes = tuple(max(n, w) for n, w in zip(shape, self.window, strict=True))
        before = tuple((size - n) // 2 for size, n in zip(sizes, shape, strict=True))
        inner = list(_box(before, shape))
        if columns is not None:
            inner[1] = slice(before[1] + columns.start, before[1] + columns.stop)
        boxes = [_box(p, self.window) for p in window_positions(sizes, self.window, self.overlap)]
        wanted = [box for box in boxes if _intersect(box[1:], inner[1:])]
        runs = zip(wanted, wanted[self.batch_size - 1 :] or wanted[-1:], strict=False)
        height = max(last[0].stop - first[0].start for first, last in runs)
        return WindowLayout(sizes, before, tuple(inner), wanted, height)

    def _windows_along(self, size: int) -> list[slice]:
        """Windows along the second axis, which has this size, in its voxels; without any padding."""
        window = self.window[1]
        padded = max(size, window)
        before = (padded - size) // 2
        starts = window_starts(padded, window, self.overlap)
        return [slice(start - before, start - before + window) for start in starts]

    def window_edges(self, size: int) -> list[int]:
        """Voxels of the second axis, which has this size, at which windows begin or end.

        Parts that are cut there share the fewest windows.
        """
        edges = {edge for piece in self._windows_along(size) for edge in (piece.start, piece.stop)}
        return sorted(edge for edge in edges if 0 < edge < size)

    def num_columns(self, size: int, columns: slice) -> int:
        """How many windows along the second axis, which has this size, are needed for some of its columns."""
        return sum(_intersect([piece], [columns]) for piece in self._windows_along(size))


@dataclass(frozen=True)
class WindowLayout:
    """Windows over an image.

    Attributes:
        sizes: voxels per axis with the padding of axes that are shorter than their window.
        before: padding in front of each axis.
        inner: the box of the padded image that results are wanted for.
        boxes: the windows that touch it, the last axis fastest.
        height: slices of the first axis that a batch of windows spans at most.
    """

    sizes: tuple[int, ...]
    before: tuple[int, ...]
    inner: Box
    boxes: list[Box]
    height: int

    @property
    def columns(self) -> slice | None:
        """Part of the second axis that the windows see; None where there is none."""
        if len(self.sizes) == 1:
            return None
        return slice(min(box[1].start for box in self.boxes), max(box[1].stop for box in self.boxes))


def predict_windows(
    image: Tensor,
    network: Network,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    blend: Blend = "gaussian",
    mirror_axes: Sequence[int] = (),
    progress: Progress | None = None,
) -> Tensor:
    """Logits of an image of any size, from overlapping windows, all at once.

    Window positions, Gaussian weights and mirroring follow nnU-Net (Isensee et al., Nature Methods 2021). An
    axis shorter than its window is padded with zeros on both sides, and cut back.

    Args:
        image: `(c, *spatial)`.
        network: maps `(n, c, *window)` to logits `(n, k, *window)`.
        window, overlap, batch_size, blend, mirror_axes: see `Sliding`.
        progress: called with (done, total, "window") after each batch.

    Returns:
        `(k, *spatial)` float32 on the image's device.

    Raises:
        ConfigError: overlap out of range, or a window of the wrong length.
    """
    sliding = SlidingWindow(
        tuple(window), overlap, batch_size, blend, tuple(mirror_axes), device=torch.device(image.device)
    )
    blocks = window_slices(InMemoryImage(image), network, sliding, progress=progress)
    return torch.cat([block.clone() for block in blocks]).movedim(-1, 0).contiguous()


def window_slices(
    image: Slices,
    network: Network,
    sliding: SlidingWindow,
    *,
    columns: slice | None = None,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Logits of an image, a block of slices along its first axis at a time.

    A block leaves as soon as no later window touches it, so the memory is that of a slab about one window high,
    however long the first axis is.

    Args:
        image: a `Whole` image, or one that is made as it is asked for.
        network: maps `(n, c, *window)` to logits `(n, k, *window)`.
        sliding: windows and how they are put together.
        columns: part of the second axis that is wanted; windows that do not touch it are left out. The values are
            those of the whole.
        progress: called with (done, total, "window") after each batch.

    Yields:
        `(slices, columns, *rest, k)` in order, together all slices, in the type of the sums. A block is a view that
        the next one overwrites.

    Raises:
        ConfigError: a window of the wrong length.
    """
    layout = sliding.layout(image.shape[1:], columns)
    held = ImageSlab(image, layout.sizes, layout.before, layout.height, layout.columns, sliding.device)
    weights = window_weights(sliding.window, sliding.blend).to(sliding.device)
    slab = LogitSlab(layout.height, layout.inner, weights, sliding.sums, sliding.background)
    done = 0
    for done, batch in _batches(held, layout, sliding):
        yield from _finished(slab, batch[0][0].start)
        images = torch.stack([held[box] for box in batch])
        slab.add(_mirrored(images, network, sliding.mirror_axes), batch)
        if progress is not None:
            progress(done, len(layout.boxes), "window")
    yield from _finished(slab, layout.sizes[0])
    if progress is not None and done < len(layout.boxes):
        progress(len(layout.boxes), len(layout.boxes), "window")


def windows_to_predict(image: Slices, sliding: SlidingWindow, columns: slice | None = None) -> int:
    """Number of windows that are not empty; looks at the whole image."""
    layout = sliding.layout(image.shape[1:], columns)
    if sliding.is_empty is None:
        return len(layout.boxes)
    held = ImageSlab(image, layout.sizes, layout.before, layout.height, layout.columns, torch.device("cpu"))
    return sum(len(batch) for _, batch in _batches(held, layout, sliding))


def _batches(
    held: ImageSlab, layout: WindowLayout, sliding: SlidingWindow
) -> Iterator[tuple[int, list[Box]]]:
    """Windows to predict together, with the count of windows up to there; `held` shows their part of the image."""
    batch: list[Box] = []
    for number, box in enumerate(layout.boxes):
        if batch and box[0].stop - batch[0][0].start > layout.height:  # windows in between were empty
            yield number, batch
            batch = []
        held.move_to((batch[0] if batch else box)[0].start, box[0].stop)
        if sliding.is_empty is not None and sliding.is_empty(held[box]):
            continue
        batch.append(box)
        if len(batch) == sliding.batch_size:
            yield number + 1, batch
            batch = []
    if batch:
        yield len(layout.boxes), batch


def _finished(slab: LogitSlab, until: int) -> Iterator[Tensor]:
    """Results of all slices before `until`, which no later window touches."""
    while slab.first < until:
        count = min(until - slab.first, slab.height)
        block = slab.finished(count)
        if block is not None:
            yield block
        slab.advance(count)


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, the last one flush with the end."""
    if size <= window:
        return [0]
    # At least a voxel: windows of one slice would else be predicted twice. The quotient is rounded because,
    # say, (1 - 0.9) * 10 is below 1 in floats, which would add a window.
    step = max(1.0, window * (1 - overlap))
    count = math.ceil(round((size - window) / step, 9)) + 1
    return [round((size - window) / (count - 1) * i) for i in range(count)]


def window_positions(
    sizes: Sequence[int], window: Sequence[int], overlap: float
) -> Iterator[tuple[int, ...]]:
    """First voxels of all windows, the last axis fastest."""
    starts = [window_starts(s, w, overlap) for s, w in zip(sizes, window, strict=True)]
    return itertools.product(*starts)


@lru_cache(maxsize=16)
def window_weights(window: tuple[int, ...], blend: Blend = "gaussian") -> Tensor:
    """Weight of each voxel of a window, `(*window)` float32, maximum 1 and nowhere 0.

    ``gaussian`` has a standard deviation of an eighth of the window along each axis, and is rounded as nnU-Net's is:
    to float16 with a peak of 10, zeros lifted to the smallest number left. Where windows meet along an edge of the
    image, all weights are so small that only the same rounding gives the same mean.
    """
    if blend == "constant":
        return torch.ones(window)
    weights = np.ones(window)
    for axis, size in enumerate(window):
        peak = np.zeros(size)
        peak[size // 2] = 1
        profile = gaussian_filter(peak, sigma=size / 8, mode="constant") if size > 1 else peak
        weights = weights * profile.reshape([-1 if a == axis else 1 for a in range(len(window))])
    peak_value = np.float32(10)
    rounded = (peak_value * weights / weights.max()).astype(np.float16).astype(np.float32)
    return torch.from_numpy(np.maximum(rounded, rounded[rounded > 0].min()) / peak_value)


def _mirrored(batch: Tensor, network: Network, axes: Sequence[int]) -> Tensor:
    logits = network(batch).float()
    if not axes:
        return logits
    subsets = [s for n in range(1, len(axes) + 1) for s in itertools.combinations(axes, n)]
    total = logits / (len(subsets) + 1)  # not in place: a network may hand back its input
    for subset in subsets:
        dims = [axis + 2 for axis in subset]
        total.add_(network(batch.flip(dims)).float().flip(dims), alpha=1 / (len(subsets) + 1))
    return total


def _intersect(one: Sequence[slice], other: Sequence[slice]) -> bool:
    """Whether two boxes share a voxel."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _box(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
