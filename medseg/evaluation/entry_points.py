"""Compare label maps with their references: overlap, surface distances in mm, volumes.

`evaluate` returns a `Table`; `evaluate_cases` yields the rows case by case, for callers that show progress. The
metrics, and their values for empty masks, are defined in `medseg.evaluation.label_maps.metrics.LabelMetrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg.data.datasets.cases import ReadingOptions
from medseg.data.datasets.names import subjects_by_name
from medseg.errors import DataError
from medseg.evaluation.instances.instance_options import InstanceOptions
from medseg.evaluation.instances.metrics import InstanceMetrics
from medseg.evaluation.instances.pairs import (
    InstancePair,
    evaluate_instance_cases,
    evaluate_instances,
    instance_pairs,
)
from medseg.evaluation.instances.table import InstanceTable
from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS, BothEmpty, MetricOptions
from medseg.evaluation.label_maps.metrics import (
    LabelMetrics,
    compare_label_maps,
    label_map,
    with_absent_labels,
)
from medseg.evaluation.label_maps.pairs import Pair, pair_files
from medseg.evaluation.label_maps.table import Statistics, Table
from medseg.io.files import stem_of
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.labels.label_table import Labels
from medseg.volumes.volume import Volume

__all__ = [
    "InstanceMetrics",
    "InstanceOptions",
    "InstancePair",
    "InstanceTable",
    "LabelMetrics",
    "MetricOptions",
    "Pair",
    "Statistics",
    "Table",
    "compare_label_maps",
    "evaluate",
    "evaluate_cases",
    "evaluate_instance_cases",
    "evaluate_instances",
    "instance_pairs",
    "pair_files",
]

Source = Volume | str | Path
_MANY_VALUES, _SHARED = 30, 0.25


def evaluate(
    prediction: Source,
    reference: Source,
    labels: Labels | None = None,
    *,
    tolerance_mm: float = 1.0,
    metrics: Sequence[str] = (),
    both_empty: BothEmpty = "leave_out",
    orientation_from: OrientationFrom | None = None,
    trust_label_array: bool = False,
) -> Table:
    """Compare label maps with their references.

    Args:
        prediction: A label volume, a file, or a folder of files that have the same names as the references.
        reference: A label volume, a file or a folder; folders are matched by file name (see `pair_files`).
        labels: Names of the values; None names each value that occurs in any case ``label_1``, ``label_2`` and so on.
        tolerance_mm: Tolerance of the surface Dice in mm.
        metrics: Metrics to compute besides those of every evaluation: ``surface_dice_area``, ``cldice``, ``boundary_iou``,
            ``lesion_wise``, or ``all``; see `MetricOptions` and, for its other options, `evaluate_cases`.
        both_empty: What a case counts whose masks are both empty, see `MetricOptions`.
        orientation_from: Description of the geometry to use where a NIfTI header leaves it open; see `medseg.read`.
        trust_label_array: Whether label maps with as many voxels as their reference, but another grid in their header,
            are compared voxel by voxel as they are stored.

    Returns:
        One row per case and label.

    Raises:
        DataError: Files are missing, are not label maps, or do not share a grid.
        ConfigError: The tolerance is negative or not finite, or a metric is unknown.

    >>> import numpy as np
    >>> from medseg.volumes.grid import Grid
    >>> from medseg.volumes.volume import Volume
    >>> data = np.zeros((1, 8, 8, 8), np.uint8)
    >>> data[0, 2:6, 2:6, 2:6] = 1
    >>> reference = Volume(data, Grid.from_spacing((8, 8, 8), (1, 1, 2)), "label")
    >>> table = evaluate(reference, reference)
    >>> table.mean()["label_1"]["dice"]
    1.0
    >>> evaluate(reference, reference, metrics=["cldice"]).mean()["label_1"]["cldice"]
    1.0
    """
    reading = ReadingOptions(orientation_from, trust_label_array)
    pairs = [replace(pair, reading=reading) for pair in _pairs(prediction, reference)]
    options = MetricOptions(tolerance_mm, tuple(metrics), both_empty)
    found = zip((pair.case for pair in pairs), evaluate_cases(pairs, labels, options), strict=True)
    subjects = subjects_by_name(pair.case for pair in pairs)
    if labels is None:
        return Table(tuple(with_absent_labels(list(found), options)), options, subjects)
    return Table(tuple(row for _, rows in found for row in rows), options, subjects)


def evaluate_cases(
    pairs: Iterable[Pair], labels: Labels | None = None, options: MetricOptions = DEFAULT_OPTIONS
) -> Iterator[list[LabelMetrics]]:
    """Yield the rows of each case, reading files only when their case is reached.

    Args:
        pairs: Predictions and references, for example from `pair_files`.
        labels: Names of the values; None names each value that occurs in the case.
        options: Metrics to compute, and the conventions for them.

    Yields:
        The rows of one case.

    Raises:
        DataError: As in `evaluate`, raised at the faulty case.

    >>> import numpy as np
    >>> from medseg.evaluation import Pair
    >>> from medseg.volumes.grid import Grid
    >>> from medseg.volumes.volume import Volume
    >>> volume = Volume(np.ones((1, 4, 4, 4), np.uint8), Grid.from_spacing((4, 4, 4)), "label")
    >>> [[row.dice for row in rows] for rows in evaluate_cases([Pair("a", volume, volume)])]
    [[1.0]]
    """
    for pair in pairs:
        prediction, reference = pair.volumes()
        table = labels_in(prediction, reference) if labels is None else labels
        if labels is None:
            _check_same_kind(prediction, reference, pair.case)
        yield compare_label_maps(
            prediction, reference, table, options, case=pair.case, annotated=pair.annotated
        )


def labels_in(*volumes: Volume) -> Labels:
    """Return labels for all values of these label maps, named ``label_1`` and so on; 0 is the background.

    Args:
        *volumes: Label maps.

    Returns:
        The labels.

    Raises:
        DataError: A volume is not a label map, or has a negative value.
    """
    return Labels.from_values(*(label_map(volume, "label map") for volume in volumes))


def _check_same_kind(prediction: Volume, reference: Volume, case: str) -> None:
    """Raise if one side is an image instead of a label map: it has many values that the other side lacks."""
    found = [set(np.unique(volume.data).tolist()) - {0} for volume in (prediction, reference)]
    if max(map(len, found)) > _MANY_VALUES and len(found[0] & found[1]) < _SHARED * max(map(len, found)):
        raise DataError(
            f"{case or 'evaluate'}: found {len(found[0])} values in the prediction and {len(found[1])} in the reference, "
            "expected label maps of the same labels. Compare maps of ids with --instances; if neither is an image, name the "
            "labels with --labels TSV."
        )


def _pairs(prediction: Source, reference: Source) -> list[Pair]:
    if isinstance(prediction, Volume) or isinstance(reference, Volume):
        sources = [s if isinstance(s, Volume) else Path(s) for s in (prediction, reference)]
        files = [source for source in sources if isinstance(source, Path)]
        if any(path.is_dir() for path in files):
            raise DataError(
                f"{files[0]}: found a folder and a volume, expected two of the same kind. Give two folders, or a file."
            )
        return [Pair(stem_of(files[0]) if files else "", sources[0], sources[1])]
    return pair_files(prediction, reference)
