"""Tables of label metrics: shown as text or HTML, averaged, and written to files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medseg.evaluation.label_maps.metric_catalog import CATALOG, MetricInfo
from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS, MetricOptions
from medseg.evaluation.label_maps.metrics import METRICS, LabelMetrics
from medseg.evaluation.statistics.agreement import Agreement, agreement_cells
from medseg.evaluation.statistics.bootstrap import DRAWS, Interval
from medseg.evaluation.statistics.table_intervals import subjects_note, table_intervals, unseen_failures_note
from medseg.evaluation.summary_json import finite_values, write_summary_json
from medseg.runtime.formatting import pluralise
from medseg.runtime.text_tables import html_table, text_table
from medseg.storage.atomic import write_text
from medseg.storage.tsv import to_tsv

KEYS = ("case", "label_value", "label")
_AGREEMENT = "volumes, prediction minus reference: mean difference and limits of agreement (± 1.96 standard deviations)"
_SHOWN = ("dice", "iou", "hd95_mm", "surface_dice", "volume_error_percent")


@dataclass(frozen=True)
class Statistics:
    """Statistics of one metric of one label over the cases in which it is finite; NaN if there is none.

    Attributes:
        mean: Arithmetic mean.
        std: Population standard deviation.
        median: Median.
        n: Number of averaged cases.
        infinite: Number of cases left out because the value is infinite: only one of the two masks was empty.

    >>> Statistics.from_values([1.0, 3.0, float("inf")])
    Statistics(mean=2.0, std=1.0, median=2.0, n=2, infinite=1)
    """

    mean: float
    std: float
    median: float
    n: int
    infinite: int

    @classmethod
    def from_values(cls, values: Iterable[float]) -> Statistics:
        """Summarise values; NaN is left out, infinity is counted.

        Args:
            values: One value per case.

        Returns:
            The statistics of the finite values.
        """
        array = np.array(list(values), dtype=np.float64)
        finite = array[np.isfinite(array)]
        infinite = int(np.isinf(array).sum())
        if finite.size == 0:
            return cls(float("nan"), float("nan"), float("nan"), 0, infinite)
        return cls(float(finite.mean()), float(finite.std()), float(np.median(finite)), finite.size, infinite)


class Row(Protocol):
    """The metrics of one label of one case."""

    @property
    def case(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def label_value(self) -> int: ...  # noqa: D102


def cases_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return case ids in the order of the rows."""
    return tuple(dict.fromkeys(row.case for row in rows))


def names_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return label names in ascending order of their values."""
    return tuple(dict.fromkeys(row.label for row in sorted(rows, key=lambda row: row.label_value)))


@dataclass(frozen=True, repr=False)
class Table:
    """Metrics of every label of every case.

    Attributes:
        rows: One row per case and label, case by case.
        options: What was computed, and by which conventions.
        subjects: Subject by case id, for intervals; a case that is not listed is a subject of its own.

    >>> import medseg
    >>> from medseg import Grid, Volume
    >>> liver = Volume(np.ones((1, 4, 4, 4), np.uint8), Grid.from_spacing((4, 4, 4)), "label")
    >>> table = medseg.evaluate(liver, liver)
    >>> table.labels, table.mean()["label_1"]["dice"]
    (('label_1',), 1.0)
    """

    rows: tuple[LabelMetrics, ...]
    options: MetricOptions = DEFAULT_OPTIONS
    subjects: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, those on request last."""
        return (*METRICS, *self.options.columns)

    @property
    def cases(self) -> tuple[str, ...]:
        """The case ids in the order of the rows."""
        return cases_of(self.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names in ascending order of their values."""
        return names_of(self.rows)

    def statistics(self) -> dict[str, dict[str, Statistics]]:
        """Return statistics over the cases, by label name and then by metric."""
        groups: dict[str, list[LabelMetrics]] = {name: [] for name in self.labels}
        for row in self.rows:
            groups[row.label].append(row)
        return {
            name: {
                metric: Statistics.from_values(row.value(metric) for row in rows) for metric in self.metrics
            }
            for name, rows in groups.items()
        }

    def mean(self) -> dict[str, dict[str, float]]:
        """Return the mean over the cases in which a metric is finite, by label name and then by metric.

        Infinite distances would make a mean meaningless; `statistics` counts the cases left out.
        """
        return {
            name: {metric: found.mean for metric, found in by_metric.items()}
            for name, by_metric in self.statistics().items()
        }

    def foreground_mean(self) -> dict[str, float]:
        """Return, by metric, the mean of the labels' means, so that rare and common labels have equal weight."""
        means = self.mean()
        return {
            metric: Statistics.from_values(by_metric[metric] for by_metric in means.values()).mean
            for metric in self.metrics
        }

    @cached_property
    def subject_of(self) -> dict[str, str]:
        """The subject of each case; that of a case without one is its id."""
        return {case: self.subjects.get(case, case) for case in self.cases}

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """The 95 % bootstrap intervals, by label name and then by metric; the foreground mean is under ``""``."""
        values = {(row.case, row.label): [row.value(metric) for metric in self.metrics] for row in self.rows}
        return table_intervals(values, self.subject_of, self.metrics)

    @cached_property
    def volume_agreement(self) -> dict[str, Agreement]:
        """The agreement of predicted and reference volumes in ml, for labels in at least two cases.

        A case counts if the prediction or the reference contains the label.
        """
        found: dict[str, list[LabelMetrics]] = {name: [] for name in self.labels}
        for row in self.rows:
            if row.volume_ml > 0 or row.reference_ml > 0:
                found[row.label].append(row)
        return {
            name: Agreement.of(
                np.array([row.volume_ml for row in rows]),
                np.array([row.reference_ml for row in rows]),
                [self.subject_of[row.case] for row in rows],
            )
            for name, rows in found.items()
            if len(rows) > 1
        }

    def write_tsv(self, path: str | Path) -> None:
        """Write every row as tab-separated text with a header; NaN and infinity are written as ``nan`` and ``inf``.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        columns = (*KEYS, *METRICS)
        rows = (
            [*(getattr(row, name) for name in columns), *(row.value(m) for m in self.options.columns)]
            for row in self.rows
        )
        write_text(path, to_tsv((*columns, *self.options.columns), rows))

    def summary(self) -> dict[str, Any]:
        """Return the foreground mean and the statistics of each label as plain values; None replaces NaN and infinity."""
        return {
            "cases": len(self.cases),
            "foreground_mean": finite_values(self.foreground_mean()),
            "labels": {
                name: {metric: finite_values(asdict(found)) for metric, found in by_metric.items()}
                for name, by_metric in self.statistics().items()
            },
            **self.options.to_plain(),
            "empty_masks": self.options.empty_rules(self.metrics),
            "bootstrap": {"draws": DRAWS, "by": "subject", "percent": 95},
            "foreground_mean_interval": plain_intervals(self.intervals[""]),
            "label_intervals": {
                name: plain_intervals(found) for name, found in self.intervals.items() if name
            },
            "volume_agreement": {name: found.to_plain() for name, found in self.volume_agreement.items()},
        }

    def write_summary(self, path: str | Path) -> None:
        """Write `summary` as JSON, with the format version.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        write_summary_json(self.summary(), path)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        tables = [text_table(self._cells(), self._notes())]
        if self.volume_agreement:
            tables.append(text_table(agreement_cells(self.volume_agreement), [_AGREEMENT]))
        return "\n\n".join(tables)

    def _repr_html_(self) -> str:
        table = html_table(self._cells(), self._notes())
        if not self.volume_agreement:
            return table
        return table + html_table(agreement_cells(self.volume_agreement), [_AGREEMENT])

    def _shown(self) -> dict[str, MetricInfo]:
        """Return the metrics of the printed table."""
        return {metric: CATALOG[metric] for metric in (*_SHOWN, *self.options.columns)}

    def _cells(self) -> list[list[str]]:
        """Return the header, one row per label that occurs, and the foreground mean if there are several labels."""
        first, *others = (info.title for info in self._shown().values())
        rows = [["label", "n", first, "95 % interval", *others]]
        for name, by_metric in self.statistics().items():
            if by_metric["dice"].n == 0:
                continue  # a label that occurs in no case is only counted in the notes
            means = {metric: found.mean for metric, found in by_metric.items()}
            rows.append(
                [name, str(by_metric["dice"].n), *self._formatted(means, self.intervals[name]["dice"])]
            )
        if len(rows) > 2:
            rows.append(
                ["foreground mean", "", *self._formatted(self.foreground_mean(), self.intervals[""]["dice"])]
            )
        return rows

    def _formatted(self, means: Mapping[str, float], dice: Interval) -> list[str]:
        """Return the shown means as texts, with the interval of the Dice after it."""
        first, *others = (info.format_value(means[metric]) for metric, info in self._shown().items())
        return [first, "-" if np.isnan(dice.low) else str(dice), *others]

    def _notes(self) -> list[str]:
        subjects = len(set(self.subject_of.values()))
        notes = [
            f"{pluralise(len(self.cases), 'case')} of {subjects_note(subjects)}; surface Dice at {self.options.tolerance_mm:g} mm",
            self.options.rule_in_words(),
            *filter(None, [unseen_failures_note(subjects)]),
        ]
        found = {name: by_metric["hd95_mm"] for name, by_metric in self.statistics().items()}
        absent = sum(hd95.n + hd95.infinite == 0 for hd95 in found.values())
        if absent:
            notes.append(f"{pluralise(absent, 'label')} {'occurs' if absent == 1 else 'occur'} in no case")
        missed = [f"{name} ({hd95.infinite})" for name, hd95 in found.items() if hd95.infinite]
        if missed:
            notes.append(
                f"HD95 leaves out cases where only prediction or reference is empty: {', '.join(missed)}"
            )
        return notes


def plain_intervals(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Return intervals by metric as plain values; None replaces NaN.

    Args:
        intervals: Intervals by metric.

    Returns:
        ``low`` and ``high`` by metric.
    """
    return {metric: finite_values(asdict(interval)) for metric, interval in intervals.items()}
