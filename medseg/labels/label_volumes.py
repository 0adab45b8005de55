"""Volumes of the labels of a label map in millilitres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.labels.label_table import Labels
from medseg.volumes.volume import Volume


@dataclass(frozen=True)
class LabelVolume:
    """The volume of one label or region.

    Attributes:
        value: Value of the label in label maps, or the value that a region is written as.
        name: Name of the label or region.
        ml: Volume in ml.
    """

    value: int
    name: str
    ml: float


def label_volumes(label_map: Volume, labels: Labels) -> tuple[LabelVolume, ...]:
    """Measure the volume of each label, or of each region if the labels have regions.

    Args:
        label_map: Label map `(1, X, Y, Z)` of non-negative values.
        labels: The labels. A region is the union of its labels.

    Returns:
        One volume per foreground label or region, in the order of the table; 0 ml where it is absent.

    >>> from medseg.volumes.grid import Grid
    >>> organs = Volume(np.full((1, 10, 10, 10), 5, np.uint8), Grid.from_spacing((10, 10, 10), (1, 1, 2)), "label")
    >>> label_volumes(organs, Labels.from_names({"background": 0, "liver": 5}))
    (LabelVolume(value=5, name='liver', ml=2.0),)
    """
    voxels = _counts(label_map.data[0])
    voxel_ml = label_map.grid.voxel_volume / 1000
    return tuple(
        LabelVolume(one.output_value, one.name, sum(voxels.get(value, 0) for value in one.values) * voxel_ml)
        for one in labels.evaluated
    )


def _counts(values: NDArray[np.integer]) -> dict[int, int]:
    """Return the number of voxels of each value, counted slice by slice to save memory."""
    counts = np.zeros(0, np.int64)
    for index in range(values.shape[-1]):
        found = np.bincount(values[..., index].ravel(), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
