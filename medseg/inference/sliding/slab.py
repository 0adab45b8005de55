"""The rolling slab: the slices of the image and of the logits that sliding windows hold in memory.

Both roll along the first axis. `ImageSlab` holds the slices that the current windows cover, `LogitSlab` the weighted sums
of their logits. Slices below the next window are finished: they are taken out, and those above them move down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices

Box = tuple[slice, ...]
_CPU = torch.device("cpu")


class Slices(Protocol):
    """An image `(c, *spatial)` that provides its slices block by block."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels per axis."""

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Return slices along the first spatial axis.

        Args:
            first: First slice.
            last: Slice after the last one.
            columns: Part of the second axis, with start and stop; None for all.

        Returns:
            Tensor `(c, last - first, columns, *rest)`.
        """


@dataclass(frozen=True)
class SlabStorage:
    """How a slab is stored.

    Attributes:
        sums: Number format of the sums of logits, float32 or float16.
        device: Device of image and sums; the network may be on another one.
    """

    sums: torch.dtype = torch.float32
    device: torch.device = _CPU


DEFAULT_STORAGE = SlabStorage()


class InMemoryImage:
    """An image that is in memory.

    Args:
        image: Image `(c, *spatial)`.

    Attributes:
        shape: Channels and voxels per axis.
    """

    def __init__(self, image: Tensor) -> None:
        self._image = image
        self.shape = tuple(image.shape)

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Return a view of slices `first` to `last`, see `Slices`."""
        found = self._image[:, first:last]
        return found if columns is None else found[:, :, columns]


class LazyImage:
    """An image whose slices are prepared on request.

    Args:
        prepared: The image to prepare.

    Attributes:
        shape: Channels and voxels per axis.
    """

    def __init__(self, prepared: PreparedSlices) -> None:
        self._prepared = prepared
        self.shape = prepared.shape

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Return new slices `first` to `last`, see `Slices`."""
        return torch.from_numpy(self._prepared.slices(first, last, columns))


class ImageSlab:
    """The consecutive slices of an image that the current windows cover.

    The image is padded with zeros along axes that are shorter than the window.

    Args:
        image: The image; each slice is requested once, in order.
        sizes: Voxels along each axis of the padded image.
        before: Voxels of padding in front of each axis.
        height: Number of slices to hold.
        columns: Range of the second axis of the padded image to hold; None for an image with one axis.
        device: Device that holds the slices.
    """

    def __init__(
        self,
        image: Slices,
        sizes: Sequence[int],
        before: Sequence[int],
        height: int,
        columns: slice | None,
        device: torch.device,
    ) -> None:
        self._image = image
        self._top = before[0]
        self._left = columns.start if columns is not None else 0
        # Columns of the image to read, and their place in what is held.
        inner = [slice(b, b + n) for b, n in zip(before[1:], image.shape[2:], strict=True)]
        held = list(sizes[1:])
        self._wanted: slice | None = None
        if columns is not None:
            left, right = max(columns.start, inner[0].start), min(columns.stop, inner[0].stop)
            self._wanted = slice(left - before[1], right - before[1])
            inner[0] = slice(left - self._left, right - self._left)
            held[0] = columns.stop - columns.start
        self._inner = tuple(inner)
        self._held = torch.zeros((image.shape[0], height, *held), device=device)
        self._first = self._end = 0

    def move_to(self, first: int, last: int) -> None:
        """Hold slices of the padded image; neither end ever moves back.

        Args:
            first: First slice.
            last: Slice after the last one.
        """
        if first > self._first:
            kept = max(0, self._end - first)
            _shift(self._held, first - self._first, kept, dim=1)
            self._first = first
        start, self._end = max(self._end, first), max(self._end, last)
        if self._end > start:
            self._read(start, self._end)

    def _read(self, start: int, end: int) -> None:
        new = self._held[:, start - self._first : end - self._first]
        new.zero_()
        top, depth = self._top, self._image.shape[1]
        low, high = max(start - top, 0), min(end - top, depth)
        if low < high:
            target = new[(slice(None), slice(low + top - start, high + top - start), *self._inner)]
            target.copy_(self._image.slices(low, high, self._wanted))

    def __getitem__(self, box: Box) -> Tensor:
        """Return a view `(c, *box)` of a box of the padded image within the slices held."""
        along = slice(box[0].start - self._first, box[0].stop - self._first)
        across = [slice(one.start - self._left, one.stop - self._left) for one in box[1:2]]
        return self._held[(slice(None), along, *across, *box[2:])]


class LogitSlab:
    """Weighted means of logits for some slices, with the outputs on the last axis, so that a slice is contiguous.

    In float32, weighted sums are held and divided at the end. In float16, sums with the small weights of a window's corners
    would lose all digits, so the running mean is held instead.

    Args:
        height: Number of slices to hold.
        inner: Box of the padded image that results are wanted for.
        weights: Weights of a window, float32, on the device of the slab.
        dtype: Number format of the sums, float32 or float16.
        background: Logits `(k,)` where no window was predicted.

    Attributes:
        first: Slice of the padded image that is the lowest in the slab.
        height: Number of slices held.
    """

    def __init__(
        self, height: int, inner: Box, weights: Tensor, dtype: torch.dtype, background: Sequence[float]
    ) -> None:
        self.first = 0
        self._inner = inner
        self.height = height
        self._weights = weights
        self._dtype = dtype
        self._background = background
        self._sums: Tensor | None = None
        plane = [box.stop - box.start for box in inner[1:]]
        self._weight_sum = torch.zeros((height, *plane), device=weights.device)

    def add(self, logits: Tensor, boxes: Sequence[Box]) -> None:
        """Add the logits of windows.

        Args:
            logits: Logits `(n, k, *window)`.
            boxes: Box of each window in the padded image.
        """
        if self._sums is None:
            shape = (*self._weight_sum.shape, logits.shape[1])
            self._sums = torch.zeros(shape, dtype=self._dtype, device=self._weights.device)
        for box, values in zip(boxes, logits.to(self._weights.device), strict=True):
            held, seen = self._placed(box)
            part = values[(slice(None), *seen)].movedim(0, -1)
            weights, total = self._weights[seen], self._weight_sum[held]
            if self._dtype == torch.float32:
                self._sums[held].addcmul_(part, weights[..., None])
                total += weights
            else:
                total += weights
                self._sums[held].lerp_(part.to(self._dtype), (weights / total)[..., None].to(self._dtype))

    def _placed(self, box: Box) -> tuple[Box, Box]:
        """Return the box of a window in the slab, and the part of the window that this is."""
        held = [slice(box[0].start - self.first, box[0].stop - self.first)]
        seen = [slice(None)]
        for b, i in zip(box[1:], self._inner[1:], strict=True):
            low, high = max(b.start, i.start), min(b.stop, i.stop)
            held.append(slice(low - i.start, high - i.start))
            seen.append(slice(low - b.start, high - b.start))
        return tuple(held), tuple(seen)

    def finished(self, count: int) -> Tensor | None:
        """Return the mean logits `(slices, *rest, k)` of the lowest slices without padding.

        Args:
            count: Number of slices.

        Returns:
            A view that the next `add` overwrites; None if all of these slices are padding.
        """
        low, high = (
            max(self._inner[0].start - self.first, 0),
            min(self._inner[0].stop - self.first, count),
        )
        if low >= high:
            return None
        weight_sum = self._weight_sum[low:high]
        if self._sums is None:  # all windows so far were empty
            block = torch.zeros((*weight_sum.shape, len(self._background)), device=weight_sum.device)
        else:
            block = self._sums[low:high]
            if self._dtype == torch.float32:
                block /= weight_sum.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        untouched = weight_sum == 0
        if untouched.any():
            for output, logit in enumerate(self._background):
                if logit:  # the others are 0 already
                    block[..., output].masked_fill_(untouched, logit)
        return block

    def advance(self, count: int) -> None:
        """Drop the lowest slices and move the others down.

        Args:
            count: Number of slices to drop.
        """
        for held in (self._sums, self._weight_sum):
            if held is not None:
                kept = max(0, self.height - count)
                _shift(held, count, kept, dim=0)
                held[kept:] = 0
        self.first += count


def _shift(held: Tensor, by: int, kept: int, dim: int) -> None:
    """Copy the `kept` slices from `by` on to the start, in pieces that do not overlap."""
    for start in range(0, kept, max(by, 1)):
        size = min(by, kept - start)
        held.narrow(dim, start, size).copy_(held.narrow(dim, start + by, size))


def bytes_of_logits(height: int, plane: int, outputs: int, dtype: torch.dtype) -> int:
    """Return the bytes that a `LogitSlab` holds.

    Args:
        height: Number of slices.
        plane: Voxels per slice.
        outputs: Logits per voxel.
        dtype: Number format of the sums.

    Returns:
        Bytes of the sums of logits and of the float32 sum of weights.
    """
    return height * plane * (outputs * dtype.itemsize + 4)
