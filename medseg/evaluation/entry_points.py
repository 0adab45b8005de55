"""Compare label maps with their references: overlap, surface distances in mm, volumes.

`evaluate` returns a `Table`; `medseg.evaluation.label_maps.evaluate_cases` yields the rows case by case. The metrics, and their values for empty masks, are defined in `medseg.evaluation.label_maps.metrics.LabelMetrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

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
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.evaluation.label_maps.metric_options import BothEmpty, MetricOptions
from medseg.evaluation.label_maps.metrics import (
    LabelMetrics,
    compare_label_maps,
    with_absent_labels,
)
from medseg.evaluation.label_maps.pairs import Pair, pair_files
from medseg.evaluation.label_maps.table import Statistics, Table
from medseg.evaluation.measured_cases import LabelMapEvaluator, measured_cases
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
    cluster: str | None = None,
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
        cluster: Dask cluster on which cases are compared, as for ``medseg evaluate --cluster``: ``local:N``, the address of a
            scheduler, or a YAML file that describes jobs of SLURM. None for this process.

    Returns:
        One row per case and label.

    Raises:
        DataError: Files are missing, are not label maps, or do not share a grid.
        ConfigError: The tolerance is negative or not finite, a metric is unknown, or the cluster is described wrongly.
        ResourceError: Memory did not suffice, or the cluster cannot be reached.

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
    found = _measured(pairs, LabelMapEvaluator(labels, options), cluster)
    subjects = subjects_by_name(pair.case for pair in pairs)
    if labels is None:
        return Table(tuple(with_absent_labels(found, options)), options, subjects)
    return Table(tuple(row for _, rows in found for row in rows), options, subjects)


def _measured(
    pairs: Sequence[Pair], measure: LabelMapEvaluator, cluster: str | None
) -> list[tuple[str, list[LabelMetrics]]]:
    """Return id and rows of each case, or raise the error of the first one that cannot be evaluated."""
    rows: dict[int, list[LabelMetrics]] = {}
    with closing(measured_cases(pairs, measure, cluster)) as outcomes:
        for index, outcome in outcomes:
            if not isinstance(outcome, list):
                raise outcome
            rows[index] = outcome
    return [(pair.case, rows[index]) for index, pair in enumerate(pairs)]


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
