"""Which instance of one set shares how many voxels with which instance of another: a prediction and its
reference, or two neighbouring slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.labels.instances import Instances


@dataclass(frozen=True)
class InstanceOverlaps:
    """The pairs of instances that share a voxel; all others are left out, so thousands of instances are cheap.

    Attributes:
        predicted: index `(p,)` of the predicted instance of each pair, rising.
        expected: index `(p,)` of its reference instance, rising within each predicted one.
        shared: voxels `(p,)` that each pair has in common.
        iou: intersection over union `(p,)` of each pair.
        predictions, references: instances in all.
    """

    predicted: NDArray[np.intp]
    expected: NDArray[np.intp]
    shared: NDArray[np.int64]
    iou: NDArray[np.float64]
    predictions: int
    references: int

    def one_to_one(self, above: float = 0.5) -> NDArray[np.intp]:
        """Pairs `(q,)` with IoU > `above` in which no instance stands twice, the highest IoU taken first.

        Among instances that do not overlap each other, an IoU over 0.5 can be had with one partner only, so
        the choice is then the only one there is (Kirillov et al. 2019).
        """
        chosen: list[int] = []
        free = (np.ones(self.predictions, bool), np.ones(self.references, bool))
        for pair in np.argsort(-self.iou, kind="stable"):
            if self.iou[pair] <= above:
                break
            p, r = self.predicted[pair], self.expected[pair]
            if free[0][p] and free[1][r]:
                free[0][p] = free[1][r] = False
                chosen.append(int(pair))
        return np.array(chosen, dtype=np.intp)

    def touched(self, at: float = 0.0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which predictions `(m,)` and references `(n,)` share a voxel, or have an IoU of at least `at`."""
        pairs = self.iou >= at
        predictions, references = np.zeros(self.predictions, bool), np.zeros(self.references, bool)
        predictions[self.predicted[pairs]] = True
        references[self.expected[pairs]] = True
        return predictions, references


def overlaps_of(prediction: Instances, reference: Instances) -> InstanceOverlaps:
    """Count the voxels that predicted and reference instances share, whatever their classes.

    Args:
        prediction: instances of an image; may overlap each other.
        reference: instances of the same image; may overlap each other.

    Raises:
        DataError: images of different shapes.
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"instances: found images of {prediction.shape} and {reference.shape}, expected the same shape. Compare "
            "instances of one image."
        )
    areas, expected_areas = prediction.areas, reference.areas
    pairs: list[tuple[int, int, int]] = []
    for layer in _layers(reference):
        for index, mask in enumerate(prediction.masks):
            counts = np.bincount(layer[prediction.box(index)][mask])
            pairs += [(index, int(r) - 1, int(counts[r])) for r in np.flatnonzero(counts) if r]
    table = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 3)
    rows, columns, shared = table.T
    union = areas[rows] + expected_areas[columns] - shared
    return InstanceOverlaps(rows, columns, shared, shared / union, len(prediction), len(reference))


def _layers(instances: Instances) -> list[NDArray[np.int32]]:
    """Maps of index + 1 that hold every instance whole: one map, or more where instances overlap."""
    layers: list[NDArray[np.int32]] = []
    for index, mask in enumerate(instances.masks):
        box = instances.box(index)
        layer = next((one for one in layers if not one[box][mask].any()), None)
        if layer is None:
            layer = np.zeros(instances.shape, dtype=np.int32)
            layers.append(layer)
        layer[box][mask] = index + 1
    return layers
