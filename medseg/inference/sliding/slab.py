"""The rolling slab: the slices of the image and of the logits that sliding windows hold in memory.

Both roll along the first axis. `ImageSlab` holds the slices that the current windows cover, `LogitSlab` the weighted sums
of their logits. Slices below the next window are finished: they are taken out, and those above them move down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from medseg.inference.sliding.read_ahead import Observer, ReadAhead
from medseg.inference.sliding.slices import Slices

Box = tuple[slice, ...]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SlabStorage:
    """How a slab is stored.

    Attributes:
        sums: Number format of the sums of logits, float32 or float16.
        device: Device of image and sums; the network may be on another one.
        read_ahead: Whether a thread prepares the next slices of the image while the network works, which takes memory for
            one more block of slices.
    """

    sums: torch.dtype = torch.float32
    device: torch.device = _CPU
    read_ahead: bool = False


DEFAULT_STORAGE = SlabStorage()


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
        observe: Called with the first slice, the slices on the CPU and the columns of everything that is read.
    """

    def __init__(
        self,
        image: Slices,
        sizes: Sequence[int],
        before: Sequence[int],
        height: int,
        columns: slice | None,
        device: torch.device,
        observe: Observer | None = None,
    ) -> None:
        self._image = image
        self._observe = observe
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

    def read_ahead(self, stops: Iterable[int]) -> ReadAhead:
        """Prepare slices in a thread from now on; the result has to be closed.

        Args:
            stops: Ascending ends of the slices that `move_to` will be called with.

        Returns:
            The image whose slices are prepared, a context manager that closes it.
        """
        ranges = pairwise([0, *stops])
        inside = (self._inside(start, end) for start, end in ranges)
        requests = [(low, high, self._wanted) for low, high in inside if low < high]
        ahead = ReadAhead(self._image, requests, self._held.device, self._observe)
        self._image, self._observe = ahead, None
        return ahead

    def _inside(self, start: int, end: int) -> tuple[int, int]:
        """Return the part of a range of slices of the padded image that is in the image, in slices of the image."""
        return max(start - self._top, 0), min(end - self._top, self._image.shape[1])

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
        top = self._top
        low, high = self._inside(start, end)
        if low < high:
            values = self._image.slices(low, high, self._wanted)
            if self._observe is not None:
                self._observe(low, values, self._wanted)
            target = new[(slice(None), slice(low + top - start, high + top - start), *self._inner)]
            target.copy_(values)

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
        self._background_on_device = torch.tensor(background, dtype=dtype, device=weights.device)
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
        if block.is_cuda:  # pragma: gpu; without asking the device whether there are any
            return block.addcmul_(untouched[..., None].to(block.dtype), self._background_on_device)
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
