"""The table of a cross-validation: every case predicted by the fold that held it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.calibration.cross_fitted import CrossFitted
from medseg.evaluation.cross_validation.select_post_processing import PostProcessing
from medseg.evaluation.instances.table import InstanceTable
from medseg.evaluation.label_maps.table import Table
from medseg.evaluation.statistics.bootstrap import Interval
from medseg.evaluation.summary_json import finite_values, write_summary_json
from medseg.runtime.text_tables import html_table, text_table


@dataclass(frozen=True, repr=False)
class FoldTable:
    """Metrics of all held-out cases together and of each fold, with confidence intervals.

    Attributes:
        table: One row per case and label, with the subject of each case.
        folds: The fold that held out each case, by case id.
        post_processing: Effect of keeping the largest components; None if it was not evaluated.
        instances: Instance metrics of the same cases; None if no instances were predicted.
        calibration: Temperatures and calibration; a sentence that says why there are none; None if nothing was asked for.
    """

    table: Table
    folds: Mapping[str, int]
    post_processing: PostProcessing | None = None
    instances: InstanceTable | None = None
    calibration: CrossFitted | str | None = None

    def rows_of_fold(self, fold: int) -> Table:
        """Return the table of one fold.

        Args:
            fold: Index of the fold.

        Returns:
            The rows of the cases that this fold held out.
        """
        rows = tuple(row for row in self.table.rows if self.folds[row.case] == fold)
        return Table(rows, self.table.options, self.table.subjects)

    @cached_property
    def by_fold(self) -> dict[int, dict[str, float]]:
        """The foreground mean, by fold and then by metric."""
        return {fold: self.rows_of_fold(fold).foreground_mean() for fold in sorted(set(self.folds.values()))}

    def over_folds(self, metric: str) -> tuple[float, float]:
        """Return the mean of the folds' foreground means and their sample standard deviation (NaN for one fold).

        Args:
            metric: Name of the metric.

        Returns:
            Mean and standard deviation over the folds with a finite mean.
        """
        values = np.array([means[metric] for means in self.by_fold.values()])
        known = values[np.isfinite(values)]
        if known.size < 2:
            return (float(known[0]) if known.size else float("nan")), float("nan")
        return float(known.mean()), float(known.std(ddof=1))

    @property
    def subjects(self) -> Mapping[str, str]:
        """The subject by case id."""
        return self.table.subject_of

    @property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """The 95 % bootstrap intervals, by label name and then by metric; the foreground mean is under ``""``."""
        return self.table.intervals

    def write_tsv(self, path: str | Path) -> None:
        """Write every row, as `Table.write_tsv` does.

        Args:
            path: The file.
        """
        self.table.write_tsv(path)

    def summary(self) -> dict[str, Any]:
        """Return `Table.summary` with folds, post-processing and calibration."""
        means = {metric: self.over_folds(metric) for metric in self.table.metrics}
        return {
            **self.table.summary(),
            "folds": [self._fold(fold) for fold in self.by_fold],
            "over_folds": {m: finite_values({"mean": mean, "std": std}) for m, (mean, std) in means.items()},
            "subjects": dict(self.subjects),
            "post_processing": self.post_processing.to_plain() if self.post_processing else None,
            "calibration": self.calibration.to_plain() if isinstance(self.calibration, CrossFitted) else None,
        }

    def write_summary(self, path: str | Path) -> None:
        """Write `summary` as JSON, with the format version; null replaces NaN and infinity.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        write_summary_json(self.summary(), path)

    def _fold(self, fold: int) -> dict[str, Any]:
        table = self.rows_of_fold(fold)
        return {
            "fold": fold,
            "cases": list(table.cases),
            "foreground_mean": finite_values(self.by_fold[fold]),
            "labels": {name: finite_values(means) for name, means in table.mean().items()},
        }

    def __repr__(self) -> str:
        instances = "" if self.instances is None else f"\n\n{self.instances!r}"
        return f"{self.table!r}\n\n{text_table(self._cells(), self._notes())}{instances}"

    def _repr_html_(self) -> str:
        instances = "" if self.instances is None else self.instances._repr_html_()
        return f"{self.table._repr_html_()}{html_table(self._cells(), self._notes())}{instances}"

    def _cells(self) -> list[list[str]]:
        """Return a header, one row per fold, and a row with mean and standard deviation, as texts."""
        shown = {"dice": ("Dice", 3), "hd95_mm": ("HD95 mm", 2), "surface_dice": ("surface Dice", 3)}
        rows = [["fold", "cases", *(title for title, _ in shown.values())]]
        for fold, means in self.by_fold.items():
            count = sum(own == fold for own in self.folds.values())
            rows.append([str(fold), str(count), *(_number(means[m], n) for m, (_, n) in shown.items())])
        together = [(self.over_folds(metric), digits) for metric, (_, digits) in shown.items()]
        rows.append(["mean ± sd", "", *(f"{_number(m, n)} ± {_number(s, n)}" for (m, s), n in together)])
        return rows

    def _notes(self) -> list[str]:
        dice, interval = self.table.foreground_mean()["dice"], self.intervals[""]["dice"]
        subjects = len(set(self.subjects.values()))
        note = f"foreground mean Dice {dice:.3f} (95 % interval {interval}, {subjects} subjects)"
        more = (self.post_processing, self.calibration)
        return [note, *(str(one) for one in more if one is not None)]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
