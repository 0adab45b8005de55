"""What a sliding window holds in memory: some slices of the image, and some of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices

Box = tuple[slice, ...]


class Slices(Protocol):
    """An image `(c, *spatial)` that is made a block of slices at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels per axis."""

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Slices `first` up to but without `last` of the first spatial axis, `(c, last - first, columns, *rest)`.

        Args:
            first, last: along the first axis.
            columns: part of the second axis, with start and stop; None for all.
        """


class InMemoryImage:
    """An image that is in memory."""

    def __init__(self, image: Tensor) -> None:
        self._image = image
        self.shape = tuple(image.shape)

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """A view of the slices."""
        found = self._image[:, first:last]
        return found if columns is None else found[:, :, columns]


class LazyImage:
    """An image whose slices are prepared as they are asked for."""

    def __init__(self, prepared: PreparedSlices) -> None:
        self._prepared = prepared
        self.shape = prepared.shape

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Fresh slices."""
        return torch.from_numpy(self._prepared.slices(first, last, columns))


class ImageSlab:
    """The slices of an image that the windows at hand see, with zeros around axes shorter than their window.

    Args:
        image: where slices come from; each is asked for once, in order.
        sizes: voxels per axis with the padding; before: how many of them come before the image.
        height: slices to hold.
        columns: part of the second axis with its padding that is held; None for an image of one axis.
        device: where they are held.
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
        # Which columns of the image these are, and where the image lies in what is held.
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
        """Hold slices `first` up to `last` of the padded image; neither ever goes back."""
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
        """View `(c, *box)` of a box of the padded image that lies in the slices held."""
        along = slice(box[0].start - self._first, box[0].stop - self._first)
        across = [slice(one.start - self._left, one.stop - self._left) for one in box[1:2]]
        return self._held[(slice(None), along, *across, *box[2:])]


class LogitSlab:
    """Weighted means of logits for some slices; outputs lie last, so that a slice is one piece.

    In float32 the weighted sums are held and divided at the end. In float16, sums with the small weights of a
    window's corners would lose all digits, so there the running mean is held.

    Args:
        height: slices to hold.
        inner: the box of the padded image that results are wanted for.
        weights: of a window, float32, on the device where sums are held.
        dtype: float32 or float16.
        nothing: logits `(k,)` where no window was predicted.
    """

    def __init__(
        self, height: int, inner: Box, weights: Tensor, dtype: torch.dtype, background: Sequence[float]
    ) -> None:
        self.first = 0
        self._inner = inner
        self.height = height
        self._weights = weights
        self._dtype = dtype
        self._nothing = background
        self._sums: Tensor | None = None
        plane = [box.stop - box.start for box in inner[1:]]
        self._weight_sum = torch.zeros((height, *plane), device=weights.device)

    def add(self, logits: Tensor, boxes: Sequence[Box]) -> None:
        """Add windows `(n, k, *window)` at `boxes` of the padded image."""
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
        """Where a window lies in the slab, and which part of the window that is."""
        held = [slice(box[0].start - self.first, box[0].stop - self.first)]
        seen = [slice(None)]
        for b, i in zip(box[1:], self._inner[1:], strict=True):
            low, high = max(b.start, i.start), min(b.stop, i.stop)
            held.append(slice(low - i.start, high - i.start))
            seen.append(slice(low - b.start, high - b.start))
        return tuple(held), tuple(seen)

    def finished(self, count: int) -> Tensor | None:
        """Mean logits `(slices, *rest, k)` of the lowest `count` slices, the padding cut off; None if no slice is left.

        The result is a view that the next `add` overwrites.
        """
        low, high = (
            max(self._inner[0].start - self.first, 0),
            min(self._inner[0].stop - self.first, count),
        )
        if low >= high:
            return None
        weight_sum = self._weight_sum[low:high]
        if self._sums is None:  # nothing but empty windows so far
            block = torch.zeros((*weight_sum.shape, len(self._nothing)), device=weight_sum.device)
        else:
            block = self._sums[low:high]
            if self._dtype == torch.float32:
                block /= weight_sum.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        untouched = weight_sum == 0
        if untouched.any():
            for output, logit in enumerate(self._nothing):
                if logit:  # the others are 0 already
                    block[..., output].masked_fill_(untouched, logit)
        return block

    def advance(self, count: int) -> None:
        """Drop the lowest `count` slices and move the others down."""
        for held in (self._sums, self._weight_sum):
            if held is not None:
                kept = max(0, self.height - count)
                _shift(held, count, kept, dim=0)
                held[kept:] = 0
        self.first += count


def _shift(held: Tensor, by: int, kept: int, dim: int) -> None:
    """Copy the `kept` slices that begin at `by` to the start, in pieces that do not overlap."""
    for start in range(0, kept, max(by, 1)):
        size = min(by, kept - start)
        held.narrow(dim, start, size).copy_(held.narrow(dim, start + by, size))


def bytes_of_logits(height: int, plane: int, outputs: int, dtype: torch.dtype) -> int:
    """Bytes that a `LogitSlab` holds for `plane` voxels a slice."""
    return height * plane * (outputs * dtype.itemsize + 4)
