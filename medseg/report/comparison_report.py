"""``comparison.html``: cross-validated runs side by side, and their differences to the best one, label by label.

The figures are those of ``comparison.tsv`` and ``comparison_labels.tsv``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.cross_validation.compare_runs import ComparedRun, Comparison
from medseg.evaluation.cross_validation.run_scores import RunScores
from medseg.evaluation.statistics.bootstrap import mean_of_known
from medseg.evaluation.statistics.table_intervals import cautions
from medseg.labels.colours import distinct_colour
from medseg.report.report_case import ReportCase
from medseg.report.report_page import MAX_BYTES, ReportPage
from medseg.report.svg_plots import strip_plot
from medseg.runtime.progress import Progress

_SMALLEST_RANGE = 0.02  # of Dice, so that rounding does not fill a plot


def write_comparison_report(
    path: str | Path,
    comparison: Comparison,
    cases: Iterable[ReportCase] = (),
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the page of a comparison atomically.

    Args:
        path: The HTML file.
        comparison: The comparison.
        cases: Where the volumes of the cases are. Cases of the comparison that are missing here have no viewer.
        max_bytes: Size of the page; volumes are reduced until they fit.
        progress: Called with the number of cases done, their total number and a word.

    Raises:
        DataError: The file cannot be written.
    """
    best = comparison.best
    place = comparison.runs.index(best)
    others = [
        _difference(one, scores, comparison.scores[place])
        for one, scores in zip(comparison.runs, comparison.scores, strict=True)
        if one is not best
    ]
    page = ReportPage(comparison.cases, max_bytes, progress)
    rows = page.with_viewers(_case_rows(comparison), cases)
    page.write(
        path,
        "comparison.html.j2",
        title=f"Comparison of {len(comparison.runs)} runs",
        summary=[
            (
                best.run,
                f"best mean {comparison.info.title}",
                f"{best.mean:.4f}, 95 % interval {best.interval}",
            ),
            (str(comparison.cases), "cases", f"of {comparison.subjects} subjects"),
        ],
        cautions=cautions(comparison.subjects),
        metric=comparison.info.title,
        runs=sorted(
            comparison.runs, key=lambda one: -one.mean if comparison.info.higher_is_better else one.mean
        ),
        best=best,
        options=comparison.options_in_words,
        others=others,
        order=[one.run for one in comparison.runs],
        case_rows=rows,
    )


def _case_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the mean over the labels of each case for each run, cases with the largest difference between runs first."""
    if not comparison.scores:
        return []
    means = np.stack([mean_of_known(scores.values) for scores in comparison.scores], axis=1)
    subjects = comparison.scores[0].subjects
    rows = [
        {"id": case, "subject": subjects[case], "means": own.tolist(), "range": float(np.ptp(own))}
        for case, own in zip(sorted(subjects), means, strict=True)
    ]
    return sorted(rows, key=lambda row: (math.isnan(row["range"]), -row["range"], row["id"]))


def _difference(one: ComparedRun, scores: RunScores, best: RunScores) -> dict[str, Any]:
    """Return the rows and the plot of the difference of a run to the best one."""
    cases = sorted(scores.subjects)
    differences = scores.values - best.values
    values = {
        name: dict(zip(cases, differences[:, column].tolist(), strict=True))
        for column, name in enumerate(scores.labels)
    }
    widest = max(_SMALLEST_RANGE, float(np.max(np.abs(differences[np.isfinite(differences)]), initial=0.0)))
    colours = {name: distinct_colour(number) for number, name in enumerate(scores.labels, start=1)}
    return {
        "run": one.run,
        "rows": one.by_label,
        "plot": strip_plot(values, colours, low=-widest, high=widest),
    }
