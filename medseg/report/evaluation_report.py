"""``report.html`` of an evaluation: the figures of the tables, every case with a viewer, and where it all comes from.

The page shows what ``cases.tsv``, ``summary.json`` and ``metrics.jsonl`` contain and computes no figure of its own. It is one
file that loads nothing. Text and layout are in the template ``evaluation.html.j2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.calibration.cross_fitted import CrossFitted, Part
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.label_maps.metric_catalog import CATALOG
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.table import Table
from medseg.evaluation.statistics.table_intervals import cautions
from medseg.labels.colours import Colour, colour_to_css, distinct_colour
from medseg.report.report_case import ReportCase
from medseg.report.report_page import MAX_BYTES, ReportPage, format_figure, format_interval
from medseg.report.svg_plots import bland_altman, line_plot, reliability_plot, strip_plot
from medseg.runtime.formatting import single_line
from medseg.runtime.progress import Progress

_MOST_AGREEMENT_PLOTS = 24


@dataclass(frozen=True)
class ReportContext:
    """What a report says besides the figures.

    Attributes:
        title: Title of the page.
        colours: Colours of labels by name; labels without one get a distinct colour.
        settings: Names and values for the table of settings, such as the model and its SHA-256.
        curves: Lines of ``metrics.jsonl`` of the training; empty without a training.
        config: The experiment as YAML text; empty without one.
    """

    title: str
    colours: Mapping[str, Colour] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[Mapping[str, Any]] = ()
    config: str = ""


def write_evaluation_report(
    path: str | Path,
    result: Table | FoldTable,
    cases: Iterable[ReportCase],
    context: ReportContext,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the page of an evaluation atomically.

    Args:
        path: The HTML file.
        result: The evaluation.
        cases: Where the volumes of the cases are. Cases of the table that are missing here have no viewer.
        context: What the page says besides the figures.
        max_bytes: Size of the page; volumes are reduced until they fit.
        progress: Called with the number of cases done, their total number and a word.

    Raises:
        DataError: The file cannot be written.
    """
    table = result.table if isinstance(result, FoldTable) else result
    page = ReportPage(len(table.cases), max_bytes, progress)
    rows = page.with_viewers(_case_rows(table), cases)
    page.write(
        path,
        "evaluation.html.j2",
        title=single_line(context.title),
        summary=_summary(result, table),
        cautions=cautions(len(set(table.subject_of.values()))),
        labels=_label_rows(table, context.colours),
        plots=_plots(table, context.colours),
        calibration=_calibration(result),
        curves=_curves(context.curves),
        cases=rows,
        settings=context.settings,
        config=context.config,
        tolerance=table.options.tolerance_mm,
        extra=[CATALOG[metric].title for metric in table.options.columns],
        empty_rule=table.options.rule_in_words(),
    )


def _summary(result: Table | FoldTable, table: Table) -> list[tuple[str, str, str]]:
    """Return the tiles at the top: value, name, and a remark."""
    means, intervals = table.foreground_mean(), table.intervals[""]
    subjects = len(set(table.subject_of.values()))
    tiles = [
        (
            format_figure(means["dice"]),
            "foreground mean Dice",
            f"95 % interval {format_interval(intervals['dice'])}",
        ),
        (
            format_figure(means["surface_dice"]),
            f"surface Dice at {table.options.tolerance_mm:g} mm",
            f"95 % interval {format_interval(intervals['surface_dice'])}",
        ),
        (
            f"{format_figure(means['hd95_mm'], 2)} mm",
            "HD95",
            f"95 % interval {format_interval(intervals['hd95_mm'], 2)}",
        ),
        (str(len(table.cases)), "cases", f"of {subjects} subjects"),
    ]
    if isinstance(result, FoldTable):
        mean, sd = result.over_folds("dice")
        tiles.append(
            (
                f"{format_figure(mean)} ± {format_figure(sd)}",
                f"Dice over {len(result.by_fold)} folds",
                "mean ± standard deviation",
            )
        )
    return tiles


def _label_rows(table: Table, colours: Mapping[str, Colour]) -> list[dict[str, Any]]:
    statistics, rows = table.statistics(), []
    for place, name in enumerate(table.labels, start=1):
        own, intervals = statistics[name], table.intervals[name]
        rows.append(
            {
                "name": name,
                "colour": colour_to_css(colours.get(name, distinct_colour(place))),
                "n": own["dice"].n,
                "missed": own["hd95_mm"].infinite,
                "dice": own["dice"],
                "dice_interval": format_interval(intervals["dice"]),
                "surface_dice": own["surface_dice"].mean,
                "hd95": own["hd95_mm"].mean,
                "hd95_interval": format_interval(intervals["hd95_mm"], 2),
                "volume_error": own["volume_error_percent"].mean,
                "extra": [CATALOG[metric].format_value(own[metric].mean) for metric in table.options.columns],
            }
        )
    return rows


def _case_rows(table: Table) -> list[dict[str, Any]]:
    """Return the figures of each case, the case with the lowest mean Dice first."""
    by_case: dict[str, list[LabelMetrics]] = {case: [] for case in table.cases}
    for row in table.rows:
        by_case[row.case].append(row)
    found = []
    for case, rows in by_case.items():
        known = [row for row in rows if math.isfinite(row.dice)]
        worst = min(known, key=lambda row: row.dice, default=None)
        found.append(
            {
                "id": case,
                "subject": table.subject_of[case],
                "dice": float(np.mean([row.dice for row in known])) if known else math.nan,
                "worst": worst,
                "hd95": max((row.hd95_mm for row in known), default=math.nan),
                "rows": rows,
            }
        )
    return sorted(found, key=lambda one: (math.isnan(one["dice"]), one["dice"], one["id"]))


def _plots(table: Table, colours: Mapping[str, Colour]) -> dict[str, Any]:
    """Return the distributions of the Dice and the agreement of volumes."""
    chosen = {
        name: colours.get(name, distinct_colour(place)) for place, name in enumerate(table.labels, start=1)
    }
    dice: dict[str, dict[str, float]] = {name: {} for name in table.labels}
    volumes: dict[str, list[tuple[str, float, float]]] = {name: [] for name in table.labels}
    for row in table.rows:
        dice[row.label][row.case] = row.dice
        if row.reference_ml > 0 or row.volume_ml > 0:
            volumes[row.label].append((row.case, row.volume_ml, row.reference_ml))
    drawn = []
    for name, one in list(table.volume_agreement.items())[:_MOST_AGREEMENT_PLOTS]:
        cases = [case for case, _, _ in volumes[name]]
        predicted, reference = np.array([[p, r] for _, p, r in volumes[name]]).T
        drawn.append((name, bland_altman(cases, predicted, reference, one, chosen[name])))
    return {
        "dice": strip_plot(dice, chosen, low=0.0, high=1.0) if table.rows else "",
        "volumes": drawn,
        "left_out": len(table.volume_agreement) - len(drawn),
        "agreement": [
            {
                "name": name,
                "colour": colour_to_css(chosen[name]),
                "n": one.cases,
                "figures": [
                    (one.bias, format_interval(one.bias_interval, 2, sign=True)),
                    (one.low, format_interval(one.low_interval, 2, sign=True)),
                    (one.high, format_interval(one.high_interval, 2, sign=True)),
                ],
            }
            for name, one in table.volume_agreement.items()
        ],
    }


def _calibration(result: Table | FoldTable) -> dict[str, Any] | None:
    """Return temperatures, figures and diagrams of a cross-validation; None without any."""
    found = result.calibration if isinstance(result, FoldTable) else None
    if not isinstance(found, CrossFitted):
        return None
    parts: tuple[tuple[Part, str], ...] = (("near", "near foreground"), ("whole", "whole image"))
    rows: list[tuple[str, str, float, float]] = []
    for part, where in parts:
        before, after = found.before[part], found.after[part]
        rows.append(("expected calibration error", where, before.ece, after.ece))
        rows += [
            (f"error of {name}", where, one, after.by_label[name]) for name, one in before.by_label.items()
        ]
        rows.append(("Brier score", where, before.brier, after.brier))
        rows.append(("negative log-likelihood", where, before.nll, after.nll))
    return {
        "temperatures": ", ".join(format_figure(one) for one in found.temperatures),
        "cases": found.cases,
        "limit_note": found.limit_note,
        "rows": rows,
        "before": reliability_plot(found.before["near"].diagram),
        "after": reliability_plot(found.after["near"].diagram),
    }


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for key, name in (("loss", "training loss"), ("mean_dice", "validation Dice")):
        points = [
            (float(row["step"]), float(row[key]))
            for row in rows
            if row.get(key) is not None and "step" in row
        ]
        known = [point for point in points if math.isfinite(point[1])]
        if known:
            series[name] = ([step for step, _ in known], [value for _, value in known])
    return line_plot(series, across="optimiser step") if series else ""
