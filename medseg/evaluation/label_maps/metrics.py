"""How well a label map agrees with its reference, label by label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import DataError
from medseg.evaluation.label_maps.surface import SurfaceDistances, checked_tolerance, surface_distances
from medseg.labels.label_sets import AnnotatedLabels, unannotated_classes
from medseg.labels.label_table import Labels, Region
from medseg.labels.overlap import dice_from_counts
from medseg.volumes.alignment import align_to_grid
from medseg.volumes.boxes import union_of_boxes
from medseg.volumes.volume import Volume

Array = NDArray[Any]
_BLOCK = 1 << 24  # voxels counted at a time: bounds the int64 index of the joint histogram


@dataclass(frozen=True)
class LabelMetrics:
    """One label of one case. Which values an absent label has:

    | prediction | reference | dice, iou, surface_dice | hd95_mm, assd_mm | volume_error_percent |
    |------------|-----------|-------------------------|------------------|----------------------|
    | empty      | empty     | NaN                     | NaN              | NaN                  |
    | empty      | present   | 0                       | infinite         | -100                 |
    | present    | empty     | 0                       | infinite         | NaN                  |

    NaN is not counted in means: a label that is rightly absent says nothing about how well it is outlined.

    Attributes:
        case: id of the case.
        value: the label's value in files, or the value that a region is written as.
        name: the label's or the region's name.
        dice: 2|P∩R| / (|P|+|R|), 0 to 1 (Dice 1945).
        iou: |P∩R| / |P∪R|, 0 to 1 (Jaccard 1912).
        hd95_mm: 95th percentile Hausdorff distance, the larger of both directions.
        assd_mm: average distance over both surfaces.
        surface_dice: share of both surfaces within the tolerance of the other, 0 to 1.
        volume_ml: predicted volume.
        reference_ml: reference volume.
        volume_error_ml: predicted less reference volume.
        volume_error_percent: that error in percent of the reference volume.
    """

    case: str
    label_value: int
    label: str
    dice: float
    iou: float
    hd95_mm: float
    assd_mm: float
    surface_dice: float
    volume_ml: float
    reference_ml: float
    volume_error_ml: float
    volume_error_percent: float


def compare_label_maps(
    prediction: Volume,
    reference: Volume,
    labels: Labels,
    *,
    tolerance_mm: float = 1.0,
    case: str = "",
    annotated: AnnotatedLabels | None = None,
) -> list[LabelMetrics]:
    """Measure every foreground label or every region of `labels` in a prediction against its reference.

    Voxels that the reference says to ignore are left out: there is nothing in either mask.

    Args:
        prediction: label map; may be oriented otherwise than the reference, voxel for voxel.
        reference: label map on the same grid.
        labels: what to measure, in the order of the result.
        tolerance_mm: for the surface Dice.
        case: id put into the rows and messages.
        drawn: names of the labels that were drawn in the reference; None for all. What others are part of is not
            measured.

    Raises:
        DataError: different grids, a value that `labels` does not hold, or not a label map.
        ConfigError: a tolerance that is negative or not finite.
    """
    checked_tolerance(tolerance_mm)
    prefix = f"{case}: " if case else ""
    prediction = aligned_to(prediction, reference, where=f"{prefix}prediction")
    classes = _classes(prediction, reference, labels, prefix)
    counts = confusion(classes[0], classes[1], len(labels))
    boxes = [ndimage.find_objects(array, max_label=len(labels) - 1) for array in classes]
    missing = unannotated_classes(labels, annotated, f"{prefix}reference")
    voxel_ml = reference.grid.voxel_volume / 1000
    steps = reference.grid.affine[:3, :3] if reference.grid.is_sheared else reference.spacing
    rows = []
    for region in labels.evaluated:
        members = [labels.values.index(value) for value in region.values]
        if set(members) & set(missing):
            continue
        # The margin makes sure that only an axis of length 1 in the volume has length 1 in the box.
        box = union_of_boxes(
            [found[index - 1] for found in boxes for index in members], reference.grid.shape, margin=1
        )
        masks = [
            array[box] == members[0] if len(members) == 1 else np.isin(array[box], members)
            for array in classes
        ]
        distances = surface_distances(masks[0], masks[1], steps)
        overlap, predicted, expected = (
            int(counts[np.ix_(members, members)].sum()),
            int(counts[members].sum()),
            int(counts[:, members].sum()),
        )
        rows.append(_row(case, region, overlap, predicted, expected, voxel_ml, distances, tolerance_mm))
    return rows


def _classes(prediction: Volume, reference: Volume, labels: Labels, prefix: str) -> list[Array]:
    """Class indices `(X, Y, Z)` of both, background in both where the reference says to ignore a voxel."""
    predicted = replace(labels, ignore=None).to_classes(
        _values(prediction, f"{prefix}prediction"), where=f"{prefix}prediction"
    )
    expected = labels.to_classes(_values(reference, f"{prefix}reference"), where=f"{prefix}reference")
    if labels.ignore is not None:
        ignored = expected == len(labels)
        predicted[ignored] = expected[ignored] = 0
    return [predicted, expected]


def aligned_to(volume: Volume, reference: Volume, *, where: str) -> Volume:
    """Return `volume` in the orientation and on the grid of `reference`.

    Raises:
        DataError: The grids differ; see `medseg.volumes.alignment.align_to_grid`.
    """
    fix = "Predict on the file that the reference belongs to, or resample the prediction with resampled(like=reference)"
    return align_to_grid(volume, reference.grid, where=where, grid_of="its reference", fix=fix)


def confusion(prediction: Array, reference: Array, num_classes: int) -> NDArray[np.int64]:
    """Count voxels `(k, k)` by predicted class (row) and reference class (column).

    Args:
        prediction: class indices of any shape, all below `num_classes`.
        reference: class indices of the same shape.
        num_classes: k.
    """
    counts = np.zeros(num_classes * num_classes, dtype=np.int64)
    if not prediction.size:  # nobody looked at any voxel
        return counts.reshape(num_classes, num_classes)
    rows = max(1, _BLOCK // max(1, prediction[0].size))
    for start in range(0, len(prediction), rows):
        joint = prediction[start : start + rows].astype(np.int64) * num_classes
        joint += reference[start : start + rows]
        counts += np.bincount(joint.ravel(), minlength=counts.size)
    return counts.reshape(num_classes, num_classes)


def label_map(volume: Volume, where: str) -> Array:
    """Values `(X, Y, Z)` of a label map, also of one that was read as an image.

    Raises:
        DataError: more than one channel, or values that are not whole numbers.
    """
    if volume.channels != 1 or volume.data.dtype.kind not in "iub":
        raise DataError(
            f"{where}: found {volume.channels} channels of {volume.data.dtype}, expected a label map: one "
            "channel of integers. Read it with read_labels."
        )
    return np.asarray(volume.data[0])


def _values(volume: Volume, where: str) -> Array:
    values = label_map(volume, where)
    return values.astype(np.uint8) if values.dtype == bool else values


def _row(
    case: str,
    region: Region,
    overlap: int,
    predicted: int,
    expected: int,
    voxel_ml: float,
    distances: SurfaceDistances,
    tolerance_mm: float,
) -> LabelMetrics:
    return LabelMetrics(
        case=case,
        label_value=region.output_value,
        label=region.name,
        dice=float(dice_from_counts(overlap, predicted, expected)),
        iou=_ratio(overlap, predicted + expected - overlap),
        hd95_mm=distances.hausdorff(95),
        assd_mm=distances.average(),
        surface_dice=distances.surface_dice(tolerance_mm),
        volume_ml=predicted * voxel_ml,
        reference_ml=expected * voxel_ml,
        volume_error_ml=(predicted - expected) * voxel_ml,
        volume_error_percent=100 * _ratio(predicted - expected, expected),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
