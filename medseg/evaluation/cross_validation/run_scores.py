"""Scores of all held-out cases of a cross-validation, read from the tables that it has written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.evaluation.label_maps.metric_catalog import CATALOG, EXTRA
from medseg.evaluation.label_maps.metric_options import options_of_metric
from medseg.evaluation.summary_json import SUMMARY_FORMAT
from medseg.storage.formats import check_format
from medseg.storage.json_files import parse_json
from medseg.storage.tsv import TsvTable, read_tsv

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?|nan|inf", re.ASCII)  # as `to_tsv` writes it


@dataclass(frozen=True)
class RunScores:
    """One metric of every held-out case of a cross-validation, or of an ensemble of several.

    Attributes:
        runs: The folder of the run, or the folders of the members of the ensemble.
        values: `(cases, labels)`, sorted by case id and by label name.
        labels: Names of the labels.
        subjects: Subject by case id.
        metric: Name of the metric.
        options: The options of the evaluation on which the metric depends, by the names of ``summary.json``.
    """

    runs: tuple[str, ...]
    values: NDArray[np.float64]
    labels: tuple[str, ...]
    subjects: dict[str, str]
    metric: str = "dice"
    options: Mapping[str, Any] = field(default_factory=dict)


def read_run_scores(run: Path, metric: str) -> RunScores:
    """Read one metric of a cross-validation from ``RUN/evaluation``.

    Args:
        run: The folder of the run.
        metric: Name of a column of ``cases.tsv``.

    Returns:
        The scores.

    Raises:
        DataError: The folder holds no cross-validation, its tables are missing, damaged or of another format, or the metric was
            not computed.
    """
    folder = run / "evaluation"
    try:
        summary = parse_json((folder / "summary.json").read_text(encoding="utf-8"))
        found = summary["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(run, error) from None
    check_format(found, SUMMARY_FORMAT, folder / "summary.json", "summary")
    try:
        subjects = _subjects(summary["subjects"])
        options = {name: summary[name] for name in options_of_metric(metric)}
        table = read_tsv(folder / "cases.tsv")
        _require_column(table, run, metric)
        labels, values = _values(table, metric, sorted(subjects))
    except _MissingColumn:
        raise
    except (OSError, ValueError, KeyError, DataError) as error:
        raise _unusable(run, error) from None
    return RunScores((str(run),), values, labels, subjects, metric, options)


class _MissingColumn(DataError):
    """The runs were evaluated without the metric."""


def _unusable(run: Path, error: Exception) -> DataError:
    """Return the error of a run whose tables cannot be used."""
    folder = run / "evaluation"
    if not (run / "fold_0").is_dir() and isinstance(error, OSError):
        return DataError(
            f"{run}: found no cross-validation, expected one. Create it with: medseg train CONFIG --run NEW --all-folds."
        )
    if isinstance(error, FileNotFoundError):
        reason = "missing"
    elif isinstance(error, OSError):
        reason = f"unreadable ({error.strerror})"
    else:
        key = (
            f"summary.json: found no key {error}, expected it" if isinstance(error, KeyError) else str(error)
        )
        reason = f"damaged: {key.rstrip('.')}"
    return DataError(
        f"{folder}: the table of the cross-validation is {reason}. Create it again with: medseg train --resume {run}."
    )


def _subjects(found: Any) -> dict[str, str]:
    """Return the subject of each case."""
    if not isinstance(found, dict) or not all(isinstance(subject, str) for subject in found.values()):
        raise ValueError(f"summary.json: subjects: found {found!r:.60}, expected the subject of each case")
    return found


def _values(
    table: TsvTable, metric: str, cases: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the names of the labels and the metric `(cases, labels)`; a table that is not complete is damaged."""
    if not table.path.read_bytes().endswith((b"\n", b"\r")):
        raise ValueError(
            "cases.tsv: found no line end after the last row, expected it, because the last number may be cut off"
        )
    values: dict[tuple[str, str], float] = {}
    for row in table.rows:
        key, text = (row.cells["case"], row.cells["label"]), row.cells[metric]
        if key in values:
            raise ValueError(
                f"cases.tsv: line {row.line}: found {key[1]!r} of {key[0]!r} twice, expected one row for both"
            )
        if not _NUMBER.fullmatch(text) or not _is_possible(float(text), metric):
            raise ValueError(
                f"cases.tsv: line {row.line}: {metric}: found {text!r:.40}, expected {_range_in_words(metric)}"
            )
        values[key] = float(text)
    labels = tuple(sorted({label for _, label in values}))
    expected = {(case, label) for case in cases for label in labels}
    if differing := sorted(values.keys() ^ expected):
        case, label = differing[0]
        there = (case, label) in values
        raise ValueError(
            f"cases.tsv: found {'a' if there else 'no'} row of case {case!r} and label {label!r}, expected "
            + ("none, because summary.json has no such case" if there else "one for each case and label")
        )
    return labels, np.array([[values[case, name] for name in labels] for case in cases], dtype=np.float64)


def _is_possible(value: float, metric: str) -> bool:
    """Return whether a metric can have a value; NaN is unknown, and the distance to nothing infinite."""
    if math.isnan(value):
        return True
    return 0 <= value <= 1 if CATALOG[metric].higher_is_better else value >= 0


def _range_in_words(metric: str) -> str:
    return (
        "a number from 0 to 1 or nan" if CATALOG[metric].higher_is_better else "a number from 0, inf or nan"
    )


def _require_column(table: TsvTable, run: Path, metric: str) -> None:
    """Raise unless a table has the columns that are read; name the option that computes a metric."""
    requested = next((name for name, columns in EXTRA.items() if metric in columns), None)
    if requested is not None and metric not in table.columns:
        raise _MissingColumn(
            f"{table.path}: found no column {metric}, expected it. Evaluate again: medseg evaluate {run} --metrics {requested}."
        )
    table.check_columns(("case", "label", metric), table.columns)
