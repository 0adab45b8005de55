"""Sliding windows: apply a network of fixed input size to an image of any size.

The image is covered by overlapping windows. The logits of each voxel are the weighted mean over the windows that contain
it. `predict_windows` returns the logits of the whole image.

`window_slices` yields the same logits in blocks of slices, from a *rolling slab*: windows are predicted in order of their
first axis, and only the slices between the first and the last one of the current windows are in memory. As soon as no later
window touches a slice, its logits are final: it leaves the slab, and its memory is used for the next slice. Memory is thus
proportional to the height of a window, however long the image is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medseg.errors import ConfigError
from medseg.inference.sliding.empty_windows import EmptyWindows
from medseg.inference.sliding.slab import DEFAULT_STORAGE, Box, ImageSlab, LogitSlab, SlabStorage
from medseg.inference.sliding.slices import InMemoryImage, Slices
from medseg.runtime.progress import Progress

Blend = Literal["gaussian", "constant"]
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SlidingWindow:
    """How an image is divided into windows and how their logits are combined.

    Attributes:
        window: Voxels per axis.
        overlap: Fraction of a window that it shares with its neighbour, in [0, 1).
        batch_size: Number of windows per call of the network.
        blend: Weights of the voxels of a window: ``gaussian``, largest at its centre, or ``constant``.
        mirror_axes: Spatial axes. Logits are the mean over all combinations of flips along them.
        background: Logits `(k,)` of voxels that are in no predicted window.
        empty_up_to: Intensity of each channel up to which a window is empty; empty windows are not predicted. None to
            predict all.
        storage: Number format and device of the slab.

    Raises:
        ConfigError: `overlap` is out of range.

    Examples:
        >>> sliding = SlidingWindow((8, 8), overlap=0.5)
        >>> [box[1] for box in sliding.layout((8, 16)).boxes]
        [slice(0, 8, None), slice(4, 12, None), slice(8, 16, None)]
    """

    window: tuple[int, ...]
    overlap: float = 0.5
    batch_size: int = 1
    blend: Blend = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    background: tuple[float, ...] = (0.0,)
    empty_up_to: tuple[float, ...] | None = None
    storage: SlabStorage = DEFAULT_STORAGE

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(
                f"overlap: found {self.overlap}, expected 0 <= overlap < 1. Use 0.5, for example."
            )

    @property
    def num_outputs(self) -> int:
        """The number of logits per voxel."""
        return len(self.background)

    def layout(self, shape: Sequence[int], columns: slice | None = None) -> WindowLayout:
        """Return the windows of an image of this shape.

        Args:
            shape: Voxels per axis.
            columns: Part of the second axis that results are wanted for; None for all.

        Returns:
            The windows in the order of prediction, and the padding that the image needs if it is smaller than a
            window.

        Raises:
            ConfigError: The window has another number of axes than the image, or is empty.
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
        """Return the windows along a second axis of this size, in voxels of the image without padding."""
        window = self.window[1]
        padded = max(size, window)
        before = (padded - size) // 2
        starts = window_starts(padded, window, self.overlap)
        return [slice(start - before, start - before + window) for start in starts]

    def window_edges(self, size: int) -> list[int]:
        """Return the voxels at which windows along the second axis begin or end.

        Bands that are cut there share the fewest windows.

        Args:
            size: Voxels of the image along the second axis.

        Returns:
            Positions in ascending order, without the two ends of the image.
        """
        edges = {edge for piece in self._windows_along(size) for edge in (piece.start, piece.stop)}
        return sorted(edge for edge in edges if 0 < edge < size)

    def num_columns(self, size: int, columns: slice) -> int:
        """Return the number of windows along the second axis that overlap some columns.

        Args:
            size: Voxels of the image along the second axis.
            columns: The columns.

        Returns:
            Number of positions along this axis; each occurs with all positions along the other axes.
        """
        return sum(_intersect([piece], [columns]) for piece in self._windows_along(size))


@dataclass(frozen=True)
class WindowLayout:
    """The windows of one image.

    Attributes:
        sizes: Voxels per axis, including the padding of axes that are shorter than their window.
        before: Padding in front of each axis.
        inner: Box of the padded image that results are wanted for.
        boxes: The windows that touch it, with the last axis varying fastest.
        height: Maximum number of slices of the first axis that a batch of windows spans.
    """

    sizes: tuple[int, ...]
    before: tuple[int, ...]
    inner: Box
    boxes: list[Box]
    height: int

    @property
    def stops(self) -> list[int]:
        """The slices at which windows end, ascending."""
        return sorted({box[0].stop for box in self.boxes})

    @property
    def columns(self) -> slice | None:
        """The part of the second axis that the windows cover; None if there is only one axis."""
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
    """Return the logits of an image of any size from overlapping windows.

    Window positions, Gaussian weights and mirroring follow nnU-Net (Isensee et al., Nature Methods 2021). An axis that is
    shorter than its window is padded with zeros on both sides; the result is cropped back.

    Args:
        image: Image `(c, *spatial)`.
        network: Maps windows `(n, c, *window)` to logits `(n, k, *window)`.
        window: Voxels per axis.
        overlap: Fraction of a window that it shares with its neighbour, in [0, 1).
        batch_size: Number of windows per call of the network.
        blend: Weights of the voxels of a window: ``gaussian``, largest at its centre, or ``constant``.
        mirror_axes: Spatial axes. Logits are the mean over all combinations of flips along them.
        progress: Called with (done, total, "window") after each batch.

    Returns:
        Logits `(k, *spatial)` float32 on the image's device.

    Raises:
        ConfigError: `overlap` is out of range, or the window is empty or has another number of axes than the image.

    Examples:
        >>> image = torch.arange(24.0).reshape(1, 4, 6)
        >>> logits = predict_windows(image, lambda windows: torch.cat([windows, -windows], 1), (3, 3))
        >>> logits.shape, torch.allclose(logits[0], image[0])
        (torch.Size([2, 4, 6]), True)
    """
    sliding = SlidingWindow(
        tuple(window),
        overlap,
        batch_size,
        blend,
        tuple(mirror_axes),
        storage=SlabStorage(device=torch.device(image.device)),
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
    """Yield the logits of an image in blocks of slices along its first axis.

    A block is yielded as soon as no later window touches it, so the memory is that of a slab about one window high, however
    long the first axis is.

    Args:
        image: The image, in memory or prepared slice by slice.
        network: Maps windows `(n, c, *window)` to logits `(n, k, *window)`.
        sliding: The windows and how their logits are combined.
        columns: Part of the second axis that is wanted; None for all. Windows that do not touch it are skipped. The
            values are the same as for the whole image.
        progress: Called with (done, total, "window") after each batch.

    Yields:
        Logits `(slices, columns, *rest, k)` in order, in the number format of the sums; all blocks together hold all
        slices. A block is a view that the next one overwrites.

    Raises:
        ConfigError: The window does not fit the image's axes.
    """
    layout = sliding.layout(image.shape[1:], columns)
    device = sliding.storage.device
    empty = _empty_windows(image, layout, sliding)
    held = _image_slab(image, layout, device, empty)
    weights = window_weights(sliding.window, sliding.blend).to(device)
    slab = LogitSlab(layout.height, layout.inner, weights, sliding.storage.sums, sliding.background)
    done = 0
    with held.read_ahead(layout.stops) if sliding.storage.read_ahead else nullcontext():
        for done, batch in _batches(held, layout, sliding, empty):
            yield from _finished(slab, batch[0][0].start)
            images = torch.stack([held[box] for box in batch])
            slab.add(_mirrored(images, network, sliding.mirror_axes), batch)
            if progress is not None:
                progress(done, len(layout.boxes), "window")
    yield from _finished(slab, layout.sizes[0])
    if progress is not None and done < len(layout.boxes):
        progress(len(layout.boxes), len(layout.boxes), "window")


def windows_to_predict(image: Slices, sliding: SlidingWindow, columns: slice | None = None) -> int:
    """Count the windows that are not empty, which reads the whole image.

    Args:
        image: The image.
        sliding: The windows.
        columns: Part of the second axis that results are wanted for; None for all.

    Returns:
        Number of windows that the network is run on; all windows if there is no test for empty ones.
    """
    layout = sliding.layout(image.shape[1:], columns)
    empty = _empty_windows(image, layout, sliding)
    if empty is None:
        return len(layout.boxes)
    held = _image_slab(image, layout, torch.device("cpu"), empty)
    return sum(len(batch) for _, batch in _batches(held, layout, sliding, empty))


def _empty_windows(image: Slices, layout: WindowLayout, sliding: SlidingWindow) -> EmptyWindows | None:
    """Return the test for empty windows of an image; None if all windows are predicted."""
    if sliding.empty_up_to is None:
        return None
    tiles = list({tuple((s.start, s.stop) for s in box[1:]): box[1:] for box in layout.boxes}.values())
    return EmptyWindows(sliding.empty_up_to, layout.sizes, image.shape[1:], layout.before, tiles)


def _image_slab(
    image: Slices, layout: WindowLayout, device: torch.device, empty: EmptyWindows | None
) -> ImageSlab:
    """Return a slab for the windows of an image."""
    observe = None if empty is None else empty.add
    return ImageSlab(image, layout.sizes, layout.before, layout.height, layout.columns, device, observe)


def _batches(
    held: ImageSlab, layout: WindowLayout, sliding: SlidingWindow, empty: EmptyWindows | None
) -> Iterator[tuple[int, list[Box]]]:
    """Yield batches of windows, each with the number of windows so far; `held` then holds their part of the image."""
    batch: list[Box] = []
    for number, box in enumerate(layout.boxes):
        if batch and box[0].stop - batch[0][0].start > layout.height:  # empty windows were skipped
            yield number, batch
            batch = []
        held.move_to((batch[0] if batch else box)[0].start, box[0].stop)
        if empty is not None and empty.is_empty(box):
            continue
        batch.append(box)
        if len(batch) == sliding.batch_size:
            yield number + 1, batch
            batch = []
    if batch:
        yield len(layout.boxes), batch


def _finished(slab: LogitSlab, until: int) -> Iterator[Tensor]:
    """Yield the logits of all slices before `until`, which no later window touches."""
    while slab.first < until:
        count = min(until - slab.first, slab.height)
        block = slab.finished(count)
        if block is not None:
            yield block
        slab.advance(count)


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return the first voxels of the windows along one axis: evenly spaced, the last one flush with the end.

    Args:
        size: Voxels of the axis.
        window: Voxels of a window.
        overlap: Fraction of a window that it shares with its neighbour, in [0, 1).

    Returns:
        Positions in ascending order, beginning with 0; only 0 if the axis is not longer than a window.

    Examples:
        >>> window_starts(110, 64, overlap=0.5)
        [0, 23, 46]
    """
    if size <= window:
        return [0]
    # At least one voxel: windows of one slice would otherwise be predicted twice. The quotient is rounded because, for
    # example, (1 - 0.9) * 10 is below 1 in floating point, which would add a window.
    step = max(1.0, window * (1 - overlap))
    count = math.ceil(round((size - window) / step, 9)) + 1
    return [round((size - window) / (count - 1) * i) for i in range(count)]


def window_positions(
    sizes: Sequence[int], window: Sequence[int], overlap: float
) -> Iterator[tuple[int, ...]]:
    """Return the first voxels of all windows, with the last axis varying fastest.

    Args:
        sizes: Voxels of the image per axis.
        window: Voxels of a window per axis.
        overlap: Fraction of a window that it shares with its neighbour, in [0, 1).

    Returns:
        Iterator over positions, one index per axis.
    """
    starts = [window_starts(s, w, overlap) for s, w in zip(sizes, window, strict=True)]
    return itertools.product(*starts)


@lru_cache(maxsize=16)
def window_weights(window: tuple[int, ...], blend: Blend = "gaussian") -> Tensor:
    """Return the weight of each voxel of a window.

    ``gaussian`` has a standard deviation of an eighth of the window along each axis. It is rounded as in nnU-Net, to
    float16 with a peak of 10 and zeros replaced by the smallest positive weight: along the edges of the image all
    weights are so small that only the same rounding gives the same mean.

    Args:
        window: Voxels per axis.
        blend: ``gaussian``, or ``constant`` for equal weights.

    Returns:
        Float32 weights `(*window)`, at most 1 and always positive.
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
    """Return the mean of the logits over all combinations of flips along some axes."""
    logits = network(batch).float()
    if not axes:
        return logits
    subsets = [s for n in range(1, len(axes) + 1) for s in itertools.combinations(axes, n)]
    total = logits / (len(subsets) + 1)  # not in place, because a network may return its input
    for subset in subsets:
        dims = [axis + 2 for axis in subset]
        total.add_(network(batch.flip(dims)).float().flip(dims), alpha=1 / (len(subsets) + 1))
    return total


def _intersect(one: Sequence[slice], other: Sequence[slice]) -> bool:
    """Return whether two boxes share a voxel."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _box(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
