"""The two masks of one label in one case, from which the metrics on request are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.label_maps.surface import Mask


@dataclass(frozen=True, eq=False)
class MaskPair:
    """The masks of a label, cropped to the box of both with a margin of a voxel inside the image.

    Attributes:
        prediction: Mask `(X, Y, Z)`.
        reference: Mask of the same shape.
        steps: Spacing `(3,)` in mm, or the matrix of steps for axes that are not at right angles; see `surface_distances`.
        diagonal_mm: Length of the image's diagonal in mm, axes of length 1 left out.
    """

    prediction: Mask
    reference: Mask
    steps: NDArray[np.float64]
    diagonal_mm: float

    @property
    def voxel_mm3(self) -> float:
        """The volume of a voxel in mm³."""
        return float(np.prod(self.steps) if self.steps.ndim == 1 else abs(np.linalg.det(self.steps)))


def overlap_over_union(first: Mask, second: Mask) -> float:
    """Return the intersection over union of two masks; NaN if both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else float("nan")
