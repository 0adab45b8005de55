"""The input of the second stage of a cascade: the image and the label map of the first stage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.lazy_labels import LabelSlices


class CascadeInput:
    """An image whose last channel holds the class indices of the first stage, prepared slice by slice.

    Args:
        image: Prepared image.
        first_stage: Class indices of the first stage on the same grid; None for background everywhere.

    Attributes:
        shape: Channels, the last one included, and voxels per axis.
    """

    def __init__(self, image: PreparedSlices, first_stage: LabelSlices | None) -> None:
        self._image = image
        self._first_stage = first_stage
        channels, *sizes = image.shape
        self.shape = (channels + 1, *sizes)

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Return slices of the image and of the first stage's label map as the last channel.

        Args:
            first: First slice.
            last: Slice after the last one.
            columns: Part of the second axis; None for all.

        Returns:
            New float32 tensor `(c + 1, last - first, columns, Y)`; its last channel is 0 without a first stage.
        """
        columns = columns or slice(0, self.shape[2])
        width = columns.stop - columns.start
        result = np.zeros((self.shape[0], last - first, width, *self.shape[3:]), np.float32)
        result[:-1] = self._image.slices(first, last, columns)
        if self._first_stage is not None:
            result[-1] = self._first_stage.slices(first, last)[:, columns]
        return torch.from_numpy(result)


EMPTY_FIRST_STAGE = 0.0
"""The limit of the last channel of an empty window: the first stage found only background there."""
