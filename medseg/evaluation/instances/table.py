"""Tables of instance metrics: one row per class and case, and all cases together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.instances.instance_options import DEFAULT_INSTANCE_OPTIONS, InstanceOptions
from medseg.evaluation.instances.metrics import InstanceMetrics, MatchCounts, pool_counts
from medseg.evaluation.instances.resampled import instance_intervals
from medseg.evaluation.instances.size_classes import COUNTS, RATIOS, SizeCounts, pool_sizes, size_names
from medseg.evaluation.label_maps.table import Statistics, cases_of, names_of, plain_intervals
from medseg.evaluation.statistics.bootstrap import DRAWS, Interval
from medseg.evaluation.statistics.table_intervals import subjects_note
from medseg.evaluation.summary_json import finite_or_none, finite_values, write_summary_json
from medseg.runtime.formatting import pluralise
from medseg.runtime.text_tables import html_table, text_table
from medseg.storage.atomic import write_text
from medseg.storage.tsv import to_tsv

METRICS = tuple(field.name for field in fields(InstanceMetrics))
COLUMNS = ("case", "label_value", "label", *METRICS)
_COUNTS = ("references", "predictions", "tp", "fn", "fp", "detected", "false_detections")
_MEANS = tuple(name for name in METRICS if name not in _COUNTS)
_SHOWN = ("references", "tp", "fn", "fp", "f1", "pq", "sq", "sensitivity", "ap", "ap50", "ap75", "aji")
_TITLES = {"f1": "F1", "pq": "PQ", "sq": "SQ", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "aji": "AJI"}


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
        options: How instances were matched, and by which sizes they were counted.
        subjects: Subject by case id, for intervals; a case that is not listed is a subject of its own.

    >>> import numpy as np
    >>> from medseg.evaluation import evaluate_instances
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> table = evaluate_instances(lesions, lesions)
    >>> table.labels, table.pooled()["instance"].tp
    (('instance',), 2)
    """

    rows: tuple[InstanceRow, ...]
    options: InstanceOptions = DEFAULT_INSTANCE_OPTIONS
    subjects: Mapping[str, str] = field(default_factory=dict)

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

    @cached_property
    def subject_of(self) -> dict[str, str]:
        """The subject of each case; that of a case without one is its id."""
        return {case: self.subjects.get(case, case) for case in self.cases}

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """The 95 % bootstrap intervals of `pooled`, by label name and then by metric; those of `mean` are under ``""``."""
        counts: dict[str, dict[str, MatchCounts]] = {name: {} for name in self.labels}
        for row in self.rows:
            counts[row.label][row.case] = row.counts
        return instance_intervals(counts, self.subject_of)

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

    def by_size(self) -> dict[str, tuple[SizeCounts, ...]]:
        """Return, by label name, the counts of all cases together for each class of size; empty without classes."""
        return {
            name: pool_sizes(row.counts.by_size for row in self.rows if row.label == name)
            for name in self.labels
        }

    def write_sizes_tsv(self, path: str | Path) -> None:
        """Write the counts of every class of size of every row as tab-separated text with a header.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        names = size_names(self.options.size_bounds_mm3)
        rows = (
            (
                row.case,
                row.label_value,
                row.label,
                name,
                *(getattr(one, column) for column in (*COUNTS, *RATIOS)),
            )
            for row in self.rows
            for name, one in zip(names, row.counts.by_size, strict=True)
        )
        write_text(path, to_tsv(("case", "label_value", "label", "size", *COUNTS, *RATIOS), rows))

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
        per_case, by_size = self.per_case(), self.by_size()
        summary = {
            "cases": len(self.cases),
            **self.options.to_plain(),
            "mean": finite_values(self.mean()),
            "bootstrap": {"draws": DRAWS, "by": "subject", "percent": 95},
            "mean_interval": plain_intervals(self.intervals[""]),
            "labels": {
                name: {
                    "pooled": finite_values(asdict(figures)),
                    "interval": plain_intervals(self.intervals[name]),
                    "per_case": {
                        metric: finite_values(asdict(found)) for metric, found in per_case[name].items()
                    },
                    **self._plain_sizes(by_size[name]),
                }
                for name, figures in self.pooled().items()
            },
        }
        write_summary_json(summary, path)

    def _plain_sizes(self, counts: tuple[SizeCounts, ...]) -> dict[str, Any]:
        """Return the counts of the classes of size of a label as plain values; nothing without classes."""
        names = size_names(self.options.size_bounds_mm3)
        by_size = {
            name: finite_values({column: getattr(one, column) for column in (*COUNTS, *RATIOS)})
            for name, one in zip(names, counts, strict=True)
        }
        return {"by_size": by_size} if by_size else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return "\n\n".join(text_table(cells, notes) for cells, notes in self._tables())

    def _repr_html_(self) -> str:
        return "".join(html_table(cells, notes) for cells, notes in self._tables())

    def _tables(self) -> list[tuple[list[list[str]], list[str]]]:
        """Return cells and notes of the table and, with classes of size, of the table by size."""
        tables = [(self._cells(), self._notes())]
        if self.options.size_bounds_mm3:
            note = "by the size of the reference, and for false positives and precision by that of the prediction"
            tables.append((self._size_cells(), [note]))
        return tables

    def _size_cells(self) -> list[list[str]]:
        shown = ("references", "tp", "fn", "fp", *RATIOS)
        rows = [["label", "size", *(_TITLES.get(name, name) for name in shown)]]
        for label, counts in self.by_size().items():
            for name, one in zip(size_names(self.options.size_bounds_mm3), counts, strict=True):
                rows.append([label, name, *(_shown(getattr(one, column)) for column in shown)])
        return rows

    def _cells(self) -> list[list[str]]:
        """Return the header, one row per label, and their mean if there are several labels."""
        rows = [["label", *(_TITLES.get(name, name) for name in _SHOWN)]]
        for label, figures in self.pooled().items():
            rows.append([label, *(_shown(getattr(figures, name)) for name in _SHOWN)])
        if len(rows) > 2:
            mean = self.mean()
            rows.append(["mean", *(_shown(mean[name]) if name in mean else "" for name in _SHOWN)])
        after = rows[0].index(_TITLES["f1"]) + 1
        intervals = [self.intervals[name]["f1"] for name in (*self.labels, "")[: len(rows) - 1]]
        texts = ["95 % interval", *("-" if np.isnan(one.low) else str(one) for one in intervals)]
        return [[*row[:after], text, *row[after:]] for row, text in zip(rows, texts, strict=True)]

    def _notes(self) -> list[str]:
        subjects = len(set(self.subject_of.values()))
        at = self.options.detection_iou
        detected = f"met with IoU {at:g}" if at else "touched by a prediction"
        return [
            f"{pluralise(len(self.cases), 'case')} of {subjects_note(subjects)}, all instances together; tp: IoU over {self.options.matching_iou:g}; sensitivity: references {detected}"
        ]


def _shown(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if finite_or_none(value) is not None else "-"
