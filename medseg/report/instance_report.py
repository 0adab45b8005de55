"""``report.html`` of an evaluation of instances: the figures of the tables, and every case with a viewer of pairs and errors.

The page shows what ``cases.tsv``, ``sizes.tsv`` and ``summary.json`` contain. Text and layout are in the template
``instances.html.j2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg.evaluation.instances.metrics import InstanceMetrics, pool_counts
from medseg.evaluation.instances.size_classes import size_names
from medseg.evaluation.instances.table import InstanceRow, InstanceTable
from medseg.evaluation.statistics.table_intervals import cautions
from medseg.labels.colours import colour_to_css, distinct_colour
from medseg.report.evaluation_report import ReportContext
from medseg.report.report_case import ReportCase
from medseg.report.report_page import MAX_BYTES, ReportPage, format_figure, format_interval
from medseg.report.svg_plots import strip_plot
from medseg.runtime.formatting import single_line
from medseg.runtime.progress import Progress

_TILES = {
    "f1": "F1",
    "pq": "panoptic quality",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "ap": "AP",
}


def write_instance_report(
    path: str | Path,
    table: InstanceTable,
    cases: Iterable[ReportCase],
    context: ReportContext,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the page of an evaluation of instances atomically.

    Args:
        path: The HTML file.
        table: The evaluation.
        cases: Where the volumes of the cases are. Cases of the table that are missing here have no viewer.
        context: What the page says besides the figures.
        max_bytes: Size of the page; volumes are reduced until they fit.
        progress: Called with the number of cases done, their total number and a word.

    Raises:
        DataError: The file cannot be written.
    """
    page = ReportPage(len(table.cases), max_bytes, progress)
    rows = page.with_viewers(_case_rows(table), cases)
    colours = {
        name: context.colours.get(name, distinct_colour(place)) for place, name in enumerate(table.labels, 1)
    }
    f1 = {
        name: {row.case: row.metrics.f1 for row in table.rows if row.label == name} for name in table.labels
    }
    page.write(
        path,
        "instances.html.j2",
        title=single_line(context.title),
        summary=_summary(table),
        labels=[
            {
                "name": name,
                "colour": colour_to_css(colours[name]),
                "metrics": found,
                "interval": format_interval(table.intervals[name]["f1"]),
            }
            for name, found in table.pooled().items()
        ],
        mean=table.mean() if len(table.labels) > 1 else None,
        mean_interval=format_interval(table.intervals[""]["f1"]) if table.rows else "",
        cautions=cautions(len(set(table.subject_of.values()))),
        sizes=_size_rows(table),
        plot=strip_plot(f1, colours, low=0.0, high=1.0) if table.rows else "",
        cases=rows,
        settings=context.settings,
        config=context.config,
        options=table.options,
    )


def _summary(table: InstanceTable) -> list[tuple[str, str, str]]:
    """Return the tiles at the top: value, name, and a remark."""
    means, found = table.mean(), list(table.pooled().values())
    how = "mean of the labels" if len(found) > 1 else "all cases together"
    counts = {name: sum(getattr(one, name) for one in found) for name in ("references", "predictions")}
    interval = table.intervals[""].get("f1")
    remarks = {"f1": f"95 % interval {format_interval(interval)}"} if interval else {}
    return [
        *(
            (format_figure(means[metric]), title, remarks.get(metric, how))
            for metric, title in _TILES.items()
        ),
        (str(counts["references"]), "references", f"{counts['predictions']} predictions"),
        (str(len(table.cases)), "cases", ""),
    ]


def _size_rows(table: InstanceTable) -> list[dict[str, Any]]:
    names = size_names(table.options.size_bounds_mm3)
    return [
        {"label": label, "size": name, "counts": one}
        for label, counts in table.by_size().items()
        for name, one in zip(names, counts, strict=True)
    ]


def _case_rows(table: InstanceTable) -> list[dict[str, Any]]:
    """Return the figures of each case, the case with the lowest F1 first; cases without instances are last."""
    by_case: dict[str, list[InstanceRow]] = {case: [] for case in table.cases}
    for row in table.rows:
        by_case[row.case].append(row)
    found = []
    for case, rows in by_case.items():
        together: InstanceMetrics = pool_counts(row.counts for row in rows).metrics()
        subject = table.subject_of[case]
        found.append(
            {"id": case, "subject": "" if subject == case else subject, "all": together, "rows": rows}
        )
    return sorted(found, key=lambda one: (math.isnan(one["all"].f1), one["all"].f1, one["id"]))
