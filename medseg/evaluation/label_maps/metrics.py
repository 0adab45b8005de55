"""Agreement of a label map with its reference, label by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import DataError
from medseg.evaluation.label_maps.extra_metrics import measure_extra
from medseg.evaluation.label_maps.mask_pair import MaskPair
from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS, MetricOptions
from medseg.evaluation.label_maps.surface import surface_distances
from medseg.labels.label_sets import AnnotatedLabels, unannotated_classes
from medseg.labels.label_table import Labels, Region
from medseg.labels.overlap import dice_from_counts
from medseg.volumes.alignment import align_to_grid
from medseg.volumes.boxes import union_of_boxes
from medseg.volumes.volume import Volume

Array = NDArray[Any]
_BLOCK = 1 << 24  # voxels counted at a time, which limits the memory of the joint histogram's int64 index


@dataclass(frozen=True)
class LabelMetrics:
    """The metrics of one label in one case.

    Values for an absent label, unless `MetricOptions.both_empty` is ``perfect``:

    | prediction | reference | dice, iou, surface_dice | sensitivity | precision | distances | volume_error_percent |
    |------------|-----------|-------------------------|-------------|-----------|-----------|----------------------|
    | empty      | empty     | NaN                     | NaN         | NaN       | NaN       | NaN                  |
    | empty      | present   | 0                       | 0           | NaN       | infinite  | -100                 |
    | present    | empty     | 0                       | NaN         | 0         | infinite  | NaN                  |

    Of the metrics on request, ``surface_dice_area``, ``cldice`` and ``boundary_iou`` have the values of the Dice. The lesion-wise
    Dice and HD95 are 0 and 374 mm if one mask is empty.

    Means leave out NaN: a label that is correctly absent does not show how well it is outlined.

    Attributes:
        case: Id of the case.
        label_value: The label's value in files, or the value that a region is written as.
        label: Name of the label or region.
        dice: 2|P∩R| / (|P|+|R|), 0 to 1 (Dice 1945).
        iou: |P∩R| / |P∪R|, 0 to 1 (Jaccard 1912).
        hd95_mm: 95th percentile of the Hausdorff distance, the larger of both directions, in mm.
        assd_mm: Average distance over both surfaces, in mm.
        masd_mm: Mean of the average distances of both directions, in mm; each surface counts the same.
        surface_dice: Fraction of both surfaces within the tolerance of the other, 0 to 1.
        sensitivity: |P∩R| / |R|, 0 to 1, also called recall.
        precision: |P∩R| / |P|, 0 to 1, also called positive predictive value.
        specificity: Fraction of the voxels outside the reference that are outside the prediction, 0 to 1. It depends on the
            field of view: large scans have values near 1 whatever the prediction.
        volume_ml: Predicted volume in ml.
        reference_ml: Reference volume in ml.
        volume_error_ml: Predicted minus reference volume in ml.
        volume_error_percent: The same error in percent of the reference volume.
        extra: The metrics on request by name, see `MetricOptions`.

    >>> from medseg.volumes.grid import Grid
    >>> liver = np.ones((1, 4, 4, 4), np.uint8)
    >>> volume = Volume(liver, Grid.from_spacing((4, 4, 4)), "label")
    >>> (metrics,) = compare_label_maps(volume, volume, Labels.from_names({"liver": 1}))
    >>> metrics.label, metrics.dice
    ('liver', 1.0)
    """

    case: str
    label_value: int
    label: str
    dice: float
    iou: float
    hd95_mm: float
    assd_mm: float
    masd_mm: float
    surface_dice: float
    sensitivity: float
    precision: float
    specificity: float
    volume_ml: float
    reference_ml: float
    volume_error_ml: float
    volume_error_percent: float
    extra: Mapping[str, float] = field(default_factory=dict, hash=False)

    def value(self, metric: str) -> float:
        """Return a metric by name, one on request included.

        Args:
            metric: Name of its column.

        Returns:
            The value.
        """
        return self.extra[metric] if metric in self.extra else float(getattr(self, metric))


METRICS = tuple(one.name for one in fields(LabelMetrics)[3:-1])
"""The metrics of every evaluation, without case, label_value and label."""


@dataclass(frozen=True)
class VoxelCounts:
    """Numbers of voxels of one label in one case.

    Attributes:
        overlap: In both masks.
        predicted: In the prediction.
        expected: In the reference.
        voxels: In the image, without those that the reference ignores.
    """

    overlap: int
    predicted: int
    expected: int
    voxels: int


def compare_label_maps(
    prediction: Volume,
    reference: Volume,
    labels: Labels,
    options: MetricOptions = DEFAULT_OPTIONS,
    *,
    case: str = "",
    annotated: AnnotatedLabels | None = None,
) -> list[LabelMetrics]:
    """Compute the metrics of every foreground label, or every region, of `labels`.

    Voxels that the reference marks as ignored are left out: neither mask contains them.

    Args:
        prediction: Label map; its orientation may differ from that of the reference.
        reference: Label map on the same grid.
        labels: Labels to evaluate, in the order of the result.
        options: Metrics to compute, and the conventions for them.
        case: Case id for the rows and messages.
        annotated: Names of the labels annotated in the reference; None for all. Regions that contain other labels are
            not evaluated.

    Returns:
        One row per label or region.

    Raises:
        DataError: The grids differ, a value is not in `labels`, or a volume is not a label map.

    >>> import numpy as np
    >>> from medseg.labels.label_table import Labels
    >>> from medseg.volumes.grid import Grid
    >>> from medseg.volumes.volume import Volume
    >>> data = np.zeros((1, 6, 6, 6), np.uint8)
    >>> data[0, 1:4, 1:4, 1:4] = 1
    >>> liver = Volume(data, Grid.from_spacing((6, 6, 6)), "label")
    >>> (row,) = compare_label_maps(liver, liver, Labels.from_names({"background": 0, "liver": 1}))
    >>> row.label, row.dice, row.hd95_mm
    ('liver', 1.0, 0.0)
    """
    prefix = f"{case}: " if case else ""
    prediction = aligned_to(prediction, reference, where=f"{prefix}prediction")
    classes, ignored = _classes(prediction, reference, labels, prefix)
    counts = confusion_matrix(classes[0], classes[1], len(labels))
    voxels = int(counts.sum()) - ignored
    boxes = [ndimage.find_objects(array, max_label=len(labels) - 1) for array in classes]
    missing = unannotated_classes(labels, annotated, f"{prefix}reference")
    voxel_ml = reference.grid.voxel_volume / 1000
    steps = reference.grid.affine[:3, :3] if reference.grid.is_sheared else reference.spacing
    diagonal_mm = _diagonal_mm(reference)
    rows = []
    for region in labels.evaluated:
        members = [labels.values.index(value) for value in region.values]
        if set(members) & set(missing):
            continue
        # The margin makes sure that only an axis of length 1 in the volume has length 1 in the box.
        box = union_of_boxes(
            [of_map[index - 1] for of_map in boxes for index in members], reference.grid.shape, margin=1
        )
        predicted, expected = (
            array[box] == members[0] if len(members) == 1 else np.isin(array[box], members)
            for array in classes
        )
        voxel_counts = VoxelCounts(
            int(counts[np.ix_(members, members)].sum()),
            int(counts[members].sum()),
            int(counts[:, members].sum()),
            voxels,
        )
        pair = MaskPair(predicted, expected, np.asarray(steps, dtype=np.float64), diagonal_mm)
        rows.append(_row(case, region, voxel_counts, voxel_ml, pair, options))
    return rows


def with_absent_labels(
    cases: Sequence[tuple[str, Sequence[LabelMetrics]]], options: MetricOptions = DEFAULT_OPTIONS
) -> list[LabelMetrics]:
    """Return the rows of all cases, adding those of labels that occur in other cases only.

    Where labels are named by the values that occur, a label that is in neither map of a case has no row. What counts there
    does not depend on voxels.

    Args:
        cases: Case ids with the rows of each case, which may be none.
        options: Metrics that were computed, and the conventions for them.

    Returns:
        The rows, case by case, in ascending order of label values.
    """
    names = {row.label: row.label_value for _, rows in cases for row in rows}
    regions = {one.output_value: one for one in Labels.from_names({"background": 0} | names).evaluated}
    complete = []
    for case, rows in cases:
        known = {row.label_value: row for row in rows}
        complete += [
            known.get(value) or _absent_row(case, regions[value], options) for value in sorted(regions)
        ]
    return complete


def _absent_row(case: str, region: Region, options: MetricOptions) -> LabelMetrics:
    """Return the row of a label that is in neither map."""
    empty = np.zeros((1, 1, 1), dtype=bool)
    pair = MaskPair(empty, empty, np.ones(3), diagonal_mm=1.0)
    return _row(case, region, VoxelCounts(0, 0, 0, voxels=1), 1.0, pair, options)


def _classes(prediction: Volume, reference: Volume, labels: Labels, prefix: str) -> tuple[list[Array], int]:
    """Return class indices `(X, Y, Z)` of both maps, and how many voxels the reference ignores; they are background in both."""
    predicted = replace(labels, ignore=None).to_classes(
        _values(prediction, f"{prefix}prediction"), where=f"{prefix}prediction"
    )
    expected = labels.to_classes(_values(reference, f"{prefix}reference"), where=f"{prefix}reference")
    if labels.ignore is None:
        return [predicted, expected], 0
    ignored = expected == len(labels)
    predicted[ignored] = expected[ignored] = 0
    return [predicted, expected], int(ignored.sum())


def aligned_to(volume: Volume, reference: Volume, *, where: str, trust_array: bool = False) -> Volume:
    """Return a label map in the orientation and on the grid of its reference.

    Args:
        volume: The label map.
        reference: The volume whose grid it must have, up to the order and direction of axes.
        where: Name of the label map, for messages.
        trust_array: Whether a label map of the same shape on another grid is placed on that of the reference.

    Returns:
        The label map, reoriented if necessary.

    Raises:
        DataError: The grids differ; see `medseg.volumes.alignment.align_to_grid`.
    """
    fix = "Predict on the file that the reference belongs to, or resample the prediction with resampled(like=reference)"
    return align_to_grid(
        volume, reference.grid, where=where, grid_of="its reference", fix=fix, trust_array=trust_array
    )


def confusion_matrix(prediction: Array, reference: Array, num_classes: int) -> NDArray[np.int64]:
    """Return voxel counts `(k, k)` by predicted class (row) and reference class (column).

    Args:
        prediction: Class indices of any shape, all below `num_classes`.
        reference: Class indices of the same shape.
        num_classes: Number of classes k.

    Returns:
        `(k, k)`.
    """
    counts = np.zeros(num_classes * num_classes, dtype=np.int64)
    if not prediction.size:  # the reference ignores every voxel
        return counts.reshape(num_classes, num_classes)
    rows = max(1, _BLOCK // max(1, prediction[0].size))
    for start in range(0, len(prediction), rows):
        joint = prediction[start : start + rows].astype(np.int64) * num_classes
        joint += reference[start : start + rows]
        counts += np.bincount(joint.ravel(), minlength=counts.size)
    return counts.reshape(num_classes, num_classes)


def label_values(volume: Volume, where: str) -> Array:
    """Return the values `(X, Y, Z)` of a label map, which may have been read as an image.

    Args:
        volume: The label map.
        where: Its name for the message.

    Returns:
        `(X, Y, Z)`.

    Raises:
        DataError: The volume has several channels, or values that are not integers.
    """
    if volume.channels != 1 or volume.data.dtype.kind not in "iub":
        raise DataError(
            f"{where}: found {volume.channels} channels of {volume.data.dtype}, expected a label map: one "
            "channel of integers. Read it with read_labels."
        )
    return np.asarray(volume.data[0])


def _values(volume: Volume, where: str) -> Array:
    values = label_values(volume, where)
    return values.astype(np.uint8) if values.dtype == bool else values


def _diagonal_mm(volume: Volume) -> float:
    """Return the length of the diagonal of a volume in mm; axes of length 1 are left out."""
    sizes = np.array([size if size > 1 else 0 for size in volume.grid.shape])
    return float(np.linalg.norm(volume.grid.affine[:3, :3] @ sizes))


def _row(
    case: str,
    region: Region,
    counts: VoxelCounts,
    voxel_ml: float,
    pair: MaskPair,
    options: MetricOptions,
) -> LabelMetrics:
    overlap, predicted, expected = counts.overlap, counts.predicted, counts.expected
    union = predicted + expected - overlap
    distances = surface_distances(pair.prediction, pair.reference, pair.steps)
    row = LabelMetrics(
        case=case,
        label_value=region.output_value,
        label=region.name,
        dice=float(dice_from_counts(overlap, predicted, expected)),
        iou=_ratio(overlap, union),
        hd95_mm=distances.hausdorff(95),
        assd_mm=distances.average(),
        masd_mm=distances.average_of_directions(),
        surface_dice=distances.surface_dice(options.tolerance_mm),
        sensitivity=_ratio(overlap, expected),
        precision=_ratio(overlap, predicted),
        specificity=_ratio(counts.voxels - union, counts.voxels - expected),
        volume_ml=predicted * voxel_ml,
        reference_ml=expected * voxel_ml,
        volume_error_ml=(predicted - expected) * voxel_ml,
        volume_error_percent=100 * _ratio(predicted - expected, expected),
        extra=measure_extra(pair, options),
    )
    if union:
        return row
    values: dict[str, Any] = {
        metric: options.when_both_empty(metric, row.value(metric)) for metric in METRICS
    }
    return replace(row, **values)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
