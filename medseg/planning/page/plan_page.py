"""The page that shows a fingerprint and its plan: one HTML file that runs no code and loads no other file.

The text and layout are in the template ``plan_page.html.j2``; this module computes the values that it shows.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from medseg.data.fingerprint.fingerprint import CaseMeasures, Fingerprint
from medseg.experiment.experiment import Experiment
from medseg.planning.explained_experiment import batch_reason, normalization_methods
from medseg.planning.page.plan_figures import (
    as_png,
    geometry_figure,
    intensity_figure,
    share_figure,
    volume_figure,
)
from medseg.planning.propose import Proposal
from medseg.runtime.formatting import format_number, percent
from medseg.storage.atomic import write_text
from medseg.viz.html_templates import render_html

_TEMPLATE = Path(__file__).with_name("plan_page.html.j2")
_MOST_IDS = 200  # case ids listed per finding
Row = tuple[str, ...]


def write_page(
    f: Fingerprint,
    path: str | Path,
    proposal: Proposal | None = None,
    experiment: Experiment | None = None,
    time: str | None = None,
) -> None:
    """Write the page of a fingerprint and of the plan derived from it, atomically.

    Args:
        f: The fingerprint.
        path: The HTML file.
        proposal: The plan, whose spacing is marked in the figures.
        experiment: The experiment of the plan; its table is shown if `proposal` is given, too.
        time: How many steps fit into the time of the plan, in words; None if it is unknown.

    Raises:
        DataError: The file cannot be written.
    """
    figures = {
        "geometry": geometry_figure(f, proposal),
        "intensity": intensity_figure(f),
        "volume": volume_figure(f),
        "share": share_figure(f),
    }
    page = render_html(
        _TEMPLATE,
        title=f"Fingerprint of {f.dataset}",
        tiles=_tiles(f),
        findings=f.findings,
        most_ids=_MOST_IDS,
        plan=_plan_rows(f, proposal, experiment, time) if proposal and experiment else None,
        figures={name: base64.b64encode(as_png(figure)).decode() for name, figure in figures.items()},
        channels=_channel_rows(f),
        labels=[_label_row(f, name, value) for name, value in f.foreground_labels.items()],
        cases=[_case_row(case) for case in f.cases],
    )
    write_text(path, page + "\n")


def _tiles(f: Fingerprint) -> dict[str, str]:
    spacing, shape = f.medians()
    return {
        "cases": f"{len(f.cases)}",
        "subjects": f"{f.subjects}",
        "channels": f"{len(f.channel_names)}",
        "labels besides background": f"{len(f.labels) - 1}",
        "median shape": _times(shape),
        "median spacing, mm": _times(spacing),
    }


def _plan_rows(f: Fingerprint, p: Proposal, experiment: Experiment, time: str | None) -> list[Row]:
    kind = {"2d": "2D", "3d": "3D, full resolution", "lowres": "3D, low resolution"}[p.kind]
    covered = f"{percent(p.covered)} of the median {_times(p.median_shape)}"
    batch = experiment.train.batch_size
    return [
        ("model", f"{experiment.model.name}, {kind}, preset {p.preset.name}"),
        *([("kind", p.kind_reason)] if p.kind_reason else []),
        ("spacing", f"{_times(p.spacing)} mm"),
        ("patch", f"{_times(experiment.patch.size)} voxels, {covered}"),
        ("batch", f"{batch}: {batch_reason(p)}" if batch == p.batch_size else f"{batch}"),
        ("normalisation", ", ".join(normalization_methods(f))),
        ("memory", p.budget.source),
        *([("time", time)] if time else []),
    ]


def _channel_rows(f: Fingerprint) -> list[Row]:
    rows = []
    for name, i in zip(f.channel_names, f.intensities, strict=True):
        values = (i.low, i.percentile_00_5, i.median, i.mean, i.std, i.percentile_99_5, i.high)
        rows.append((name, *map(format_number, values)))
    return rows


def _label_row(f: Fingerprint, name: str, value: int) -> Row:
    present = [case for case in f.cases if value in case.label_voxels]
    count = f"{len(present)} of {len(f.cases)}"
    if not present:
        return (name, f"{value}", count, "–", "–", "–")
    ml = [case.label_ml(value) for case in present]
    voxels = float(np.median([case.label_voxels[value] for case in present]))
    span = f"{format_number(min(ml))} to {format_number(max(ml))}"
    return (name, f"{value}", count, f"{voxels:,.0f}", format_number(float(np.median(ml))), span)


def _case_row(case: CaseMeasures) -> Row:
    return (
        case.id,
        _times(case.shape),
        _times(case.spacing),
        case.orientation,
        percent(case.relative_size),
        percent(case.foreground_fraction),
    )


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
