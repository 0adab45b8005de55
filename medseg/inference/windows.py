"""Sliding windows: from an image and a network to logits, a block of finished slices at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from medseg.errors import ConfigError

Blend = Literal["gaussian", "constant"]
Network = Callable[[Tensor], Tensor]
OnWindow = Callable[[int, int], None]


def predict_windows(
    image: Tensor,
    network: Network,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    blend: Blend = "gaussian",
    mirror_axes: Sequence[int] = (),
    on_window: OnWindow | None = None,
) -> Tensor:
    """Logits of an image of any size, from overlapping windows, all at once.

    Window positions, Gaussian weights and mirroring follow nnU-Net (Isensee et al., Nature Methods 2021). An
    axis shorter than its window is padded with zeros on both sides, and cut back.

    Args:
        image: `(c, *spatial)`.
        network: maps `(n, c, *window)` to logits `(n, k, *window)`.
        window: voxels per axis.
        overlap: share of a window that its neighbour covers, in [0, 1).
        batch_size: windows per call of `network`.
        blend: weights inside a window.
        mirror_axes: spatial axes; logits are the mean over all combinations of flips along them.
        on_window: called with (windows done, windows in all) after each batch.

    Returns:
        `(k, *spatial)` float32 on the image's device.

    Raises:
        ConfigError: overlap out of range, or a window of the wrong length.
    """
    blocks = window_slices(
        image,
        network,
        window,
        overlap=overlap,
        batch_size=batch_size,
        blend=blend,
        mirror_axes=mirror_axes,
        on_window=on_window,
    )
    return torch.cat([block.clone() for block in blocks]).movedim(-1, 0).contiguous()


def window_slices(
    image: Tensor,
    network: Network,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    blend: Blend = "gaussian",
    mirror_axes: Sequence[int] = (),
    on_window: OnWindow | None = None,
) -> Iterator[Tensor]:
    """Logits of an image, a block of slices along its first axis at a time.

    A block leaves as soon as no later window touches it, so the memory is that of a slab about one window high,
    however long the first axis is.

    Args:
        image: `(c, *spatial)`; for the others see `predict_windows`.

    Yields:
        `(slices, *rest, k)` float32, in order and together all slices. A block is a view that the next one
        overwrites.

    Raises:
        ConfigError: overlap out of range, or a window of the wrong length.
    """
    spatial = tuple(image.shape[1:])
    if len(window) != len(spatial) or min(window) < 1:
        raise ConfigError(
            f"window: found {tuple(window)}, expected {len(spatial)} positive sizes. Correct it."
        )
    padded, before = _padded(image, window)
    inner = _box(before, spatial)
    sizes = padded.shape[1:]
    positions = list(window_positions(sizes, window, overlap))
    batches = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
    height = max(batch[-1][0] + window[0] - batch[0][0] for batch in batches)
    slab = _Slab((height, *sizes[1:]), window_weights(tuple(window), blend).to(image.device))
    done = 0
    for batch in batches:
        if batch[0][0] > slab.first:
            yield from _within(slab.take(batch[0][0] - slab.first), inner)
            slab.advance()
        boxes = [_box(position, window) for position in batch]
        slab.add(
            _mirrored(torch.stack([padded[(slice(None), *box)] for box in boxes]), network, mirror_axes),
            boxes,
        )
        done += len(batch)
        if on_window is not None:
            on_window(done, len(positions))
    yield from _within(slab.take(sizes[0] - slab.first), inner)


class _Slab:
    """Weighted sums of logits of the slices from `first` on; classes lie last, so that a slice is one piece."""

    def __init__(self, shape: tuple[int, ...], weights: Tensor) -> None:
        self.first = 0
        self._weights = weights
        self._shape = shape
        self._sums: Tensor | None = None
        self._weight_sum = torch.zeros(shape, device=weights.device)
        self._taken = 0

    def add(self, logits: Tensor, boxes: Sequence[tuple[slice, ...]]) -> None:
        """Add windows `(n, k, *window)` at `boxes` of the padded image."""
        if self._sums is None:
            self._sums = torch.zeros((*self._shape, logits.shape[1]), device=logits.device)
        for box, values in zip(boxes, logits, strict=True):
            along = slice(box[0].start - self.first, box[0].stop - self.first)
            self._sums[(along, *box[1:])] += (values * self._weights).movedim(0, -1)
            self._weight_sum[(along, *box[1:])] += self._weights

    def take(self, count: int) -> tuple[int, Tensor]:
        """First slice and mean logits `(count, *rest, k)` of the lowest slices, which end here."""
        assert self._sums is not None
        self._taken = count
        block = self._sums[:count]
        block /= self._weight_sum[:count, ..., None]
        return self.first, block

    def advance(self) -> None:
        """Move the rest down over the slices that were taken."""
        assert self._sums is not None
        for sums in (self._sums, self._weight_sum):
            for start in range(0, len(sums) - self._taken, self._taken):  # pieces that do not overlap
                piece = sums[start + self._taken : start + 2 * self._taken]
                sums[start : start + len(piece)] = piece
            sums[len(sums) - self._taken :] = 0
        self.first += self._taken


def _within(taken: tuple[int, Tensor], inner: Sequence[slice]) -> Iterator[Tensor]:
    """The part of a block that is not padding, if any."""
    first, block = taken
    low, high = max(inner[0].start - first, 0), min(inner[0].stop - first, len(block))
    if low < high:
        yield block[(slice(low, high), *inner[1:])]


def _padded(image: Tensor, window: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The image with zeros around axes that are shorter than their window, and how many come first."""
    padding = [max(0, w - s) for w, s in zip(window, image.shape[1:], strict=True)]
    before = [p // 2 for p in padding]
    if not any(padding):
        return image, before
    pairs = [(b, p - b) for b, p in zip(before, padding, strict=True)]
    return functional.pad(image, [edge for pair in reversed(pairs) for edge in pair]), before


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, the last one flush with the end."""
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap: found {overlap}, expected 0 <= overlap < 1. Use 0.5, for example.")
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
    for subset in subsets:
        dims = [axis + 2 for axis in subset]
        logits = logits + network(batch.flip(dims)).float().flip(dims)
    return logits / (len(subsets) + 1)


def _box(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
