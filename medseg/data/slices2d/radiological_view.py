"""Slices turned to the orientation in which radiologists read them, and back.

The patient's right is on the left of axial and coronal slices, and sagittal slices face left. Anterior is up in axial
slices, superior in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from medseg.errors import DataError
from medseg.labels.instances import Instances
from medseg.volumes.orientation import checked_axcodes

if TYPE_CHECKING:
    from torch import Tensor

_ROWS_AND_COLUMNS = {"S": "PL", "A": "IL", "R": "IP"}  # keyed by the direction across the slices
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True)
class RadiologicalView:
    """The turn from slices `(… a b)` to images `(… rows columns)`: a swap of the two axes, then flips.

    Attributes:
        swapped: Whether rows run along the second axis of the slice.
        flips: Whether the rows, and whether the columns, run against their axis.
    """

    swapped: bool
    flips: tuple[bool, bool]

    @classmethod
    def from_orientation(cls, axis: int, orientation: str = "RAS") -> Self:
        """Return the turn for slices across an axis of a volume.

        Args:
            axis: Array axis across the slices.
            orientation: Axis codes of the volume.

        Returns:
            The swap and flips of the slices.

        Raises:
            DataError: The codes are unknown, or the axis is not 0, 1 or 2.
        """
        if axis not in (0, 1, 2):
            raise DataError(
                f"axis: found {axis}, expected 0, 1 or 2. Choose the array axis across the slices."
            )
        codes = checked_axcodes(orientation)
        across = codes[axis]
        wanted = _ROWS_AND_COLUMNS.get(across) or _ROWS_AND_COLUMNS[_OPPOSITE[across]]
        own = codes[:axis] + codes[axis + 1 :]
        swapped = own[0] not in (wanted[0], _OPPOSITE[wanted[0]])
        seen = own[::-1] if swapped else own
        return cls(swapped, (seen[0] != wanted[0], seen[1] != wanted[1]))

    def turn(self, slices: Tensor) -> Tensor:
        """Return the images `(… rows columns)` of slices `(… a b)`."""
        turned = slices.transpose(-2, -1) if self.swapped else slices
        flipped = [axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip]
        return turned.flip(flipped) if flipped else turned

    def turn_back(self, images: Tensor) -> Tensor:
        """Return the slices `(… a b)` of images `(… rows columns)`."""
        flipped = [axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip]
        turned = images.flip(flipped) if flipped else images
        return turned.transpose(-2, -1) if self.swapped else turned

    def instances_back(self, found: Instances) -> Instances:
        """Return instances on the axes of a slice, given the instances found in its image."""
        boxes = found.boxes  # (m, 2, d)
        starts = np.stack(
            [
                found.shape[axis] - boxes[:, 1, axis] if flip else boxes[:, 0, axis]
                for axis, flip in enumerate(self.flips)
            ],
            axis=1,
        )
        axes = tuple(axis for axis, flip in enumerate(self.flips) if flip)
        masks = [np.flip(mask, axes) if axes else mask for mask in found.masks]
        if self.swapped:
            starts, masks = starts[:, ::-1], [mask.T for mask in masks]
        shape = found.shape[::-1] if self.swapped else found.shape
        return Instances.from_crops(shape, starts, masks, found.classes, found.scores)
