"""``comparison.html``: cross-validated runs side by side, and their differences to the best one, label by label.

The figures are those of ``comparison.tsv`` and ``comparison_labels.tsv``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.cross_validation.compare_runs import ComparedRun, Comparison
from medseg.evaluation.cross_validation.run_scores import RunScores
from medseg.evaluation.statistics.table_intervals import cautions
from medseg.labels.colours import distinct_colour
from medseg.report.report_page import ReportPage
from medseg.report.svg_plots import strip_plot

_SMALLEST_RANGE = 0.02  # of Dice, so that rounding does not fill a plot


def write_comparison_report(path: str | Path, comparison: Comparison) -> None:
    """Write the page of a comparison atomically.

    Args:
        path: The HTML file.
        comparison: The comparison.

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
    ReportPage(0).write(
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
    )


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
