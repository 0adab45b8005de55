"""Overlaps between two sets of instances: a prediction and its reference, or two neighbouring slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.labels.instances import Instances


@dataclass(frozen=True)
class InstanceOverlaps:
    """The pairs of a predicted and a reference instance that share at least one voxel.

    Other pairs are not stored, so thousands of instances need little memory.

    Attributes:
        predicted: Index `(p,)` of the predicted instance of each pair, ascending.
        expected: Index `(p,)` of the reference instance of each pair, ascending for each predicted instance.
        shared: Number of voxels `(p,)` that the instances of each pair share.
        iou: Intersection over union `(p,)` of each pair.
        predictions: Total number of predicted instances.
        references: Total number of reference instances.
    """

    predicted: NDArray[np.intp]
    expected: NDArray[np.intp]
    shared: NDArray[np.int64]
    iou: NDArray[np.float64]
    predictions: int
    references: int

    def one_to_one(self, above: float = 0.5) -> NDArray[np.intp]:
        """Return the indices `(q,)` of pairs in which every instance occurs at most once, highest IoU first.

        If instances of the same set do not overlap, an IoU above 0.5 is possible with one partner only, so the matching
        is unique (Kirillov et al. 2019, Panoptic segmentation, arXiv:1801.00868).

        Args:
            above: Pairs must have a higher IoU than this.

        Returns:
            Indices `(q,)` into the pairs.
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
        """Return which predictions `(m,)` and references `(n,)` overlap an instance of the other set.

        Args:
            at: Smallest IoU that counts; with 0, one shared voxel is sufficient.

        Returns:
            A boolean array for the predictions `(m,)` and one for the references `(n,)`.
        """
        pairs = self.iou >= at
        predictions, references = np.zeros(self.predictions, bool), np.zeros(self.references, bool)
        predictions[self.predicted[pairs]] = True
        references[self.expected[pairs]] = True
        return predictions, references


def overlaps_of(prediction: Instances, reference: Instances) -> InstanceOverlaps:
    """Count the voxels that predicted and reference instances share, regardless of their classes.

    Args:
        prediction: Instances of an image; may overlap each other.
        reference: Instances of the same image; may overlap each other.

    Returns:
        The pairs of instances that share at least one voxel.

    Raises:
        DataError: The images have different shapes.

    Examples:
        >>> prediction = Instances.from_map(np.array([[1, 1, 1, 0, 2]]))
        >>> reference = Instances.from_map(np.array([[0, 1, 1, 1, 0]]))
        >>> overlaps_of(prediction, reference).iou
        array([0.5])
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"instances: found images of shapes {prediction.shape} and {reference.shape}, expected equal shapes. Compare "
            "instances of the same image."
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
    """Return maps of index + 1 that contain all instances completely: several if instances overlap."""
    layers: list[NDArray[np.int32]] = []
    for index, mask in enumerate(instances.masks):
        box = instances.box(index)
        layer = next((one for one in layers if not one[box][mask].any()), None)
        if layer is None:
            layer = np.zeros(instances.shape, dtype=np.int32)
            layers.append(layer)
        layer[box][mask] = index + 1
    return layers
