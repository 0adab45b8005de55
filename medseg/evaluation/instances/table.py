"""Tables of instance metrics: one row per class and case, and all cases together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from medseg.evaluation.instances.metrics import InstanceMetrics, MatchCounts, pool_counts
from medseg.evaluation.label_maps.table import Statistics, cases_of, names_of
from medseg.evaluation.summary_json import finite_or_none, finite_values, write_summary_json
from medseg.runtime.formatting import pluralise
from medseg.runtime.text_tables import html_table, text_table
from medseg.storage.atomic import write_text
from medseg.storage.tsv import to_tsv

METRICS = tuple(field.name for field in fields(InstanceMetrics))
COLUMNS = ("case", "label_value", "label", *METRICS)
_COUNTS = ("references", "predictions", "tp", "fn", "fp", "detected", "false_detections")
_MEANS = tuple(name for name in METRICS if name not in _COUNTS)
_SHOWN = ("references", "tp", "fn", "fp", "f1", "pq", "sq", "sensitivity", "ap", "ap50", "ap75")
_TITLES = {"f1": "F1", "pq": "PQ", "sq": "SQ", "ap": "AP", "ap50": "AP50", "ap75": "AP75"}


@dataclass(frozen=True)
class InstanceRow:
    """One class of one case.

    Attributes:
        case: Id of the case.
        label_value: Value of the label.
        label: Name of the label.
        counts: The counts from which the metrics of several cases together are computed.
        metrics: The metrics of this case alone.
    """

    case: str
    label_value: int
    label: str
    counts: MatchCounts
    metrics: InstanceMetrics


@dataclass(frozen=True, repr=False)
class InstanceTable:
    """Instance metrics of every class of every case.

    Attributes:
        rows: One row per case and class, case by case.
        detection_iou: IoU from which a reference counts as detected; 0 for any shared voxel.

    >>> import numpy as np
    >>> from medseg.evaluation import evaluate_instances
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> table = evaluate_instances(lesions, lesions)
    >>> table.labels, table.pooled()["instance"].tp
    (('instance',), 2)
    """

    rows: tuple[InstanceRow, ...]
    detection_iou: float = 0.0

    @property
    def cases(self) -> tuple[str, ...]:
        """The case ids in the order of the rows."""
        return cases_of(self.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names in ascending order of their values."""
        return names_of(self.rows)

    def pooled(self) -> dict[str, InstanceMetrics]:
        """Return, by label name, the metrics over all cases together, in which every instance has equal weight."""
        return {
            name: pool_counts(row.counts for row in self.rows if row.label == name).metrics()
            for name in self.labels
        }

    def mean(self) -> dict[str, float]:
        """Return, by metric except counts, the mean of the labels' pooled metrics; labels that never occur are left out."""
        figures = self.pooled().values()
        return {name: Statistics.from_values(getattr(one, name) for one in figures).mean for name in _MEANS}

    def per_case(self) -> dict[str, dict[str, Statistics]]:
        """Return, by label name and then by metric, statistics over the cases in which the metric is a number."""
        return {
            name: {
                metric: Statistics.from_values(
                    getattr(row.metrics, metric) for row in self.rows if row.label == name
                )
                for metric in METRICS
            }
            for name in self.labels
        }

    def write_tsv(self, path: str | Path) -> None:
        """Write every row as tab-separated text with a header; NaN is written as ``nan``.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        rows = ((row.case, row.label_value, row.label, *asdict(row.metrics).values()) for row in self.rows)
        write_text(path, to_tsv(COLUMNS, rows))

    def write_summary(self, path: str | Path) -> None:
        """Write pooled metrics and statistics per case as JSON, with the format version; null replaces NaN.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        per_case = self.per_case()
        summary = {
            "cases": len(self.cases),
            "detection_iou": self.detection_iou,
            "mean": finite_values(self.mean()),
            "labels": {
                name: {
                    "pooled": finite_values(asdict(figures)),
                    "per_case": {
                        metric: finite_values(asdict(found)) for metric, found in per_case[name].items()
                    },
                }
                for name, figures in self.pooled().items()
            },
        }
        write_summary_json(summary, path)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return text_table(self._cells(), self._notes())

    def _repr_html_(self) -> str:
        return html_table(self._cells(), self._notes())

    def _cells(self) -> list[list[str]]:
        """Return the header, one row per label, and their mean if there are several labels."""
        rows = [["label", *(_TITLES.get(name, name) for name in _SHOWN)]]
        for label, figures in self.pooled().items():
            rows.append([label, *(_shown(getattr(figures, name)) for name in _SHOWN)])
        if len(rows) > 2:
            mean = self.mean()
            rows.append(["mean", *(_shown(mean[name]) if name in mean else "" for name in _SHOWN)])
        return rows

    def _notes(self) -> list[str]:
        count = len(self.cases)
        detected = f"met with IoU {self.detection_iou:g}" if self.detection_iou else "touched by a prediction"
        return [
            f"{pluralise(count, 'case')} together; found: IoU over 0.5; sensitivity: references {detected}"
        ]


def _shown(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if finite_or_none(value) is not None else "-"
