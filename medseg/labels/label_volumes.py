"""Volumes of the labels of a label map in millilitres."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.labels.label_table import Labels
from medseg.volumes.volume import Volume

_LARGEST_TABLE = 1 << 16  # values of some atlases have nine digits, which no table has room for


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
    voxels = voxel_counts(label_map.data[0])
    voxel_ml = label_map.grid.voxel_volume / 1000
    return tuple(
        LabelVolume(
            region.output_value, region.name, sum(voxels.get(value, 0) for value in region.values) * voxel_ml
        )
        for region in labels.evaluated
    )


def voxel_counts(values: NDArray[Any]) -> dict[int, int]:
    """Count the voxels of each value of a label map, slice by slice to save memory.

    Args:
        values: Label map of any shape; slices are taken along its last axis.

    Returns:
        Number of voxels by value; values that do not occur are left out.

    Examples:
        >>> voxel_counts(np.array([[0, 7], [7, 614454277]]))
        {0: 1, 7: 2, 614454277: 1}
    """
    counts: Counter[int] = Counter()
    for index in range(values.shape[-1]):
        counts.update(_counts_of_slice(values[..., index]))
    return dict(sorted(counts.items()))


def _counts_of_slice(values: NDArray[Any]) -> dict[int, int]:
    if values.size and values.min() >= 0 and values.max() < _LARGEST_TABLE:
        table = np.bincount(values.ravel())
        present = np.flatnonzero(table)
        return dict(zip(present.tolist(), table[present].tolist(), strict=True))
    present, counts = np.unique(values, return_counts=True)
    return dict(zip(present.tolist(), counts.tolist(), strict=True))
