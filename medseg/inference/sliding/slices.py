"""Images that provide their slices block by block, in memory or prepared on request."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices


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
