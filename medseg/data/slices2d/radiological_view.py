"""Slices turned as a radiologist sees them, and turned back.

The patient's right is on the left of axial and coronal slices, sagittal ones face left; anterior is up in axial
slices, superior in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.errors import ConfigError, DataError
from medseg.labels.instances import Instances
from medseg.volumes.grid import checked_axcodes

_ROWS_AND_COLUMNS = {"S": "PL", "A": "IL", "R": "IP"}  # by the direction across the slices
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True)
class RadiologicalView:
    """How slices `(… a b)` become pictures `(… rows columns)`: the axes are swapped or not, then flipped.

    Attributes:
        swapped: whether rows run along the second of the slice's axes.
        flips: whether rows, and whether columns, run against their axis.
    """

    swapped: bool
    flips: tuple[bool, bool]

    @classmethod
    def from_orientation(cls, axis: int, orientation: str = "RAS") -> Self:
        """The turn for slices across array `axis` of a volume with these axis codes.

        Raises:
            DataError: unknown codes, or an axis other than 0, 1, 2.
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
        """Pictures `(… rows columns)` of slices `(… a b)`."""
        turned = slices.transpose(-2, -1) if self.swapped else slices
        flipped = [axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip]
        return turned.flip(flipped) if flipped else turned

    def turn_back(self, pictures: Tensor) -> Tensor:
        """Slices `(… a b)` of pictures `(… rows columns)`."""
        flipped = [axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip]
        turned = pictures.flip(flipped) if flipped else pictures
        return turned.transpose(-2, -1) if self.swapped else turned

    def instances_back(self, found: Instances) -> Instances:
        """Instances of slices, from instances of pictures."""
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


def radiological_view(
    slices: SliceSettings, axis: int, preprocessing: Preprocessing
) -> RadiologicalView | None:
    """How slices across `axis` are turned; None where they are not.

    Raises:
        ConfigError: volumes keep their files' axes, so that nobody knows how they are seen.
    """
    if not slices.radiological_view:
        return None
    if not preprocessing.orientation:
        raise ConfigError(
            "slices.radiological_view: found preprocess.orientation null, expected axis codes. Set it to RAS, say."
        )
    return RadiologicalView.from_orientation(axis, preprocessing.orientation)
