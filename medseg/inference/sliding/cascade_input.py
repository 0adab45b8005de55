"""The image of a later stage of a cascade: its channels, and the label map of the earlier stage beside them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.lazy_labels import LabelSlices

# Settings that say how windows are run, whatever labels and axes a model has: of all stages together.
FOR_ALL_STAGES = ("overlap", "batch_size", "precision", "compile")


class CascadeInput:
    """An image whose last channel holds the classes of an earlier stage, made as slices are asked for.

    Args:
        image: prepared.
        previous: classes on the same grid; None for none yet, which are background.
    """

    def __init__(self, image: PreparedSlices, first_stage: LabelSlices | None) -> None:
        self._image = image
        self._previous = first_stage
        channels, *sizes = image.shape
        self.shape = (channels + 1, *sizes)

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Fresh slices `(c + 1, last - first, columns, Y)` float32."""
        columns = columns or slice(0, self.shape[2])
        width = columns.stop - columns.start
        result = np.zeros((self.shape[0], last - first, width, *self.shape[3:]), np.float32)
        result[:-1] = self._image.slices(first, last, columns)
        if self._previous is not None:
            result[-1] = self._previous.slices(first, last)[:, columns]
        return torch.from_numpy(result)


def empty_in_both(of_image: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    """The test for windows `(c + 1, *window)`: the image is empty, and the earlier stage saw nothing there."""
    return lambda window: of_image(window[:-1]) and not bool(window[-1].any())
