"""``report.html`` of an evaluation: the figures of the tables, every case with a viewer, and where it all comes from.

The page shows what ``cases.tsv``, ``summary.json`` and ``metrics.jsonl`` contain and computes no figure of its own. It is one
file that loads nothing. Text and layout are in the template ``report.html.j2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.table import Table
from medseg.evaluation.statistics.bootstrap import FEW_SUBJECTS, Interval
from medseg.labels.colours import Colour, distinct_colour
from medseg.report.report_case import ReportCase
from medseg.report.svg_plots import bland_altman, line_plot, strip_plot
from medseg.runtime.formatting import single_line
from medseg.runtime.progress import Progress
from medseg.storage.atomic import write_text
from medseg.viz.viewer.viewer_page import (
    SHELL_CASE,
    SHELL_TITLE,
    content_hash,
    embedded_json,
    viewer_scripts,
    viewer_shell,
)

MAX_BYTES = 28 * 10**6
_MOST_OF_A_CASE = 4 * 10**6
_MOST_AGREEMENT_PLOTS = 24
_FOLDER = Path(__file__).parent


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
    """Write the page of an evaluation, whole or not at all.

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
    sources = {case.id: case for case in cases}
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    each = min(_MOST_OF_A_CASE, (max_bytes - len(viewer_shell())) // max(len(table.cases), 1))
    rows: list[dict[str, Any]] = []
    views: list[str] = []
    for number, row in enumerate(_case_rows(table), start=1):
        case = sources.get(row["id"], ReportCase(row["id"]))
        found = case.shown(each)
        has_viewer = found["viewer"] is not None
        rows.append({**row, **found, "notes": [*case.notes], "view": len(views) if has_viewer else None})
        if has_viewer:
            views.append(embedded_json(found["viewer"]))
        if progress is not None:
            progress(number, len(table.cases), f"report: {case.id}")
    page = _template().render(
        title=single_line(context.title),
        version=version("medseg"),
        summary=_summary(result, table),
        few=len(set(table.subject_of.values())) < FEW_SUBJECTS,
        labels=_label_rows(table, context.colours),
        plots=_plots(table, context.colours),
        curves=_curves(context.curves),
        cases=rows,
        settings=context.settings,
        config=context.config,
        tolerance=table.tolerance_mm,
        shell=embedded_json({"page": viewer_shell(), "title": SHELL_TITLE, "case": SHELL_CASE})
        if views
        else "",
        views=views,
        script=script,
        hashes=[content_hash(one) for one in (script, *(viewer_scripts() if views else ()))],
    )
    write_text(path, page)


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True)
    environment.filters["line"] = single_line
    environment.filters["number"] = _number
    environment.filters["sortable"] = _sortable
    return environment.get_template("report.html.j2")


def _number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "∞" if value is not None and math.isinf(value) else "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _sortable(value: float) -> str:
    """Return a number as JavaScript reads it; an unknown one is empty."""
    return "" if math.isnan(value) else "Infinity" if math.isinf(value) else f"{value:.6g}"


def _interval(interval: Interval, digits: int = 3) -> str:
    if math.isnan(interval.low):
        return "unknown"
    return f"{_number(interval.low, digits)} to {_number(interval.high, digits)}"


def _summary(result: Table | FoldTable, table: Table) -> list[tuple[str, str, str]]:
    """Return the tiles at the top: value, name, and a remark."""
    means, intervals = table.foreground_mean(), table.intervals[""]
    subjects = len(set(table.subject_of.values()))
    tiles = [
        (_number(means["dice"]), "foreground mean Dice", f"95 % interval {_interval(intervals['dice'])}"),
        (
            _number(means["surface_dice"]),
            f"surface Dice at {table.tolerance_mm:g} mm",
            f"95 % interval {_interval(intervals['surface_dice'])}",
        ),
        (f"{_number(means['hd95_mm'], 2)} mm", "HD95", f"95 % interval {_interval(intervals['hd95_mm'], 2)}"),
        (str(len(table.cases)), "cases", f"of {subjects} subjects"),
    ]
    if isinstance(result, FoldTable):
        mean, sd = result.over_folds("dice")
        tiles.append(
            (
                f"{_number(mean)} ± {_number(sd)}",
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
                "colour": "rgb({}, {}, {})".format(*colours.get(name, distinct_colour(place))),
                "n": own["dice"].n,
                "missed": own["hd95_mm"].infinite,
                "dice": own["dice"],
                "dice_interval": _interval(intervals["dice"]),
                "surface_dice": own["surface_dice"].mean,
                "hd95": own["hd95_mm"].mean,
                "hd95_interval": _interval(intervals["hd95_mm"], 2),
                "volume_error": own["volume_error_percent"].mean,
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
    """Return the distributions of the Dice and the agreement of volumes, labels with the widest limits first."""
    chosen = {
        name: colours.get(name, distinct_colour(place)) for place, name in enumerate(table.labels, start=1)
    }
    dice: dict[str, dict[str, float]] = {name: {} for name in table.labels}
    volumes: dict[str, list[tuple[str, float, float]]] = {name: [] for name in table.labels}
    for row in table.rows:
        dice[row.label][row.case] = row.dice
        if row.reference_ml > 0 or row.volume_ml > 0:
            volumes[row.label].append((row.case, row.volume_ml, row.reference_ml))
    agreement = []
    for name, found in volumes.items():
        if len(found) < 2:
            continue
        cases = [case for case, _, _ in found]
        predicted, reference = np.array([[p, r] for _, p, r in found]).T
        agreement.append((name, bland_altman(cases, predicted, reference, chosen[name])))
    return {
        "dice": strip_plot(dice, chosen, low=0.0, high=1.0) if table.rows else "",
        "volumes": agreement[:_MOST_AGREEMENT_PLOTS],
        "left_out": max(len(agreement) - _MOST_AGREEMENT_PLOTS, 0),
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
