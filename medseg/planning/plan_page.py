"""The fingerprint as one HTML file that runs nothing and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.experiment.experiment import Experiment
from medseg.planning.explained_experiment import batch_reason, normalization_methods
from medseg.planning.fingerprint.fingerprint import Finding, Fingerprint
from medseg.planning.plan_figures import (
    as_png,
    geometry_figure,
    intensity_figure,
    share_figure,
    volume_figure,
)
from medseg.planning.propose import Proposal
from medseg.runtime.formatting import format_number, percent, pluralise, single_line
from medseg.storage.atomic import write_text

if TYPE_CHECKING:
    from medseg.viz.canvas import ReportFigure

# No script, no style but this page's, no picture but those in it: names in a dataset cannot become code.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_MOST_IDS = 200
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2d3748; background: #f7fafc; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.lead { margin: .2rem 0 1.2rem; color: #718096; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; }
.tile { background: white; border: 1px solid #e2e8f0; border-radius: 8px; padding: .55rem .9rem; }
.tile b { display: block; font-size: 1.15rem; } .tile span { color: #718096; font-size: .8rem; }
figure { background: white; border: 1px solid #e2e8f0; border-radius: 8px; margin: 0 0 .8rem; padding: .8rem; }
figure img { width: 100%; height: auto; } figcaption { color: #718096; font-size: .85rem; }
ul.findings { list-style: none; padding: 0; margin: 0; }
ul.findings li { background: white; border: 1px solid #e2e8f0; border-left: 4px solid #a0aec0;
  border-radius: 6px; padding: .5rem .9rem; margin-bottom: .5rem; }
ul.findings li.severe { border-left-color: #c2571a; }
details { color: #718096; font-size: .85rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: white; border: 1px solid #e2e8f0; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #edf2f7; }
th { color: #718096; font-weight: 600; } td.number, th.number { text-align: right; }
"""


def write_page(
    f: Fingerprint, path: str | Path, proposal: Proposal | None = None, experiment: Experiment | None = None
) -> None:
    """Write the page of a fingerprint, with what was planned from it, in one step.

    Args:
        f: the fingerprint. path: an .html file.
        proposal: what was planned, its spacing drawn in the figures. experiment: what was made of it, for a table.

    Raises:
        DataError: the file cannot be written.
    """
    title = f"Fingerprint of {single_line(f.dataset)}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">Measured on {len(f.cases)} labelled cases. Axes are X, Y, Z after turning to RAS+.</p>',
        _tiles(f),
        *_section("Findings", _findings(f.findings)),
        *(_section("Plan", _plan(f, proposal, experiment)) if proposal and experiment else []),
        *_section(
            "Size and spacing",
            _figure(geometry_figure(f, proposal), "Files as stored, a histogram per axis."),
        ),
        *_section(
            "Intensities",
            _figure(
                intensity_figure(f),
                "Labelled voxels of each case: percentiles 0.5 to 99.5, median as a dot. The line is the median of the "
                "dataset, each case weighing the same.",
            ),
            _channel_table(f),
        ),
        *_section(
            "Labels",
            _figure(volume_figure(f), "Over the cases that have the label: range, quartiles, median."),
            _label_table(f),
        ),
        *_section("Foreground and crop", _figure(share_figure(f), "Of the whole image.")),
        *_section(
            "Cases",
            f"<details><summary>{pluralise(len(f.cases), 'case')}</summary>{_case_table(f)}</details>",
        ),
    ]
    body = "\n".join(parts)
    write_text(
        path,
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
    )


def _section(title: str, *content: str) -> list[str]:
    return [f"<h2>{title}</h2>", *content]


def _tiles(f: Fingerprint) -> str:
    spacing, shape = f.medians()
    tiles = {
        "cases": f"{len(f.cases)}",
        "subjects": f"{f.subjects}",
        "channels": f"{len(f.channel_names)}",
        "labels besides background": f"{len(f.labels) - 1}",
        "median voxels": _times(shape),
        "median spacing, mm": _times(spacing),
    }
    inner = "".join(
        f'<div class="tile"><b>{_text(v)}</b><span>{_text(k)}</span></div>' for k, v in tiles.items()
    )
    return f'<div class="tiles">{inner}</div>'


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing odd was found.</p>"
    return f'<ul class="findings">{"".join(map(_finding, findings))}</ul>'


def _finding(finding: Finding) -> str:
    mark = ' class="severe"' if finding.severe else ""
    listed = ""
    if len(finding.cases) > 1:
        ids = ", ".join(finding.cases[:_MOST_IDS]) + (" …" if len(finding.cases) > _MOST_IDS else "")
        listed = f"<details><summary>{pluralise(len(finding.cases), 'case')}</summary>{_text(ids)}</details>"
    return f"<li{mark}>{_text(finding.text)}{listed}</li>"


def _plan(f: Fingerprint, p: Proposal, experiment: Experiment) -> str:
    kind = {"2d": "2-D", "3d": "3-D, full resolution", "lowres": "3-D, low resolution"}[p.kind]
    seen = f"{percent(p.covered)} of the median {_times(p.median_shape)}"
    batch = experiment.train.batch_size
    rows = [
        ("model", f"{experiment.model.name}, {kind}, preset {p.preset.name}"),
        ("spacing", f"{_times(p.spacing)} mm"),
        ("patch", f"{_times(experiment.patch.size)} voxels, {seen}"),
        ("batch", f"{batch}: {batch_reason(p)}" if batch == p.batch_size else f"{batch}"),
        ("normalisation", ", ".join(normalization_methods(f))),
        ("memory", p.budget.source),
    ]
    return _table(("", ""), rows, numbers=())


def _channel_table(f: Fingerprint) -> str:
    rows = [
        (
            name,
            *(
                format_number(v)
                for v in (i.low, i.percentile_00_5, i.median, i.mean, i.std, i.percentile_99_5, i.high)
            ),
        )
        for name, i in zip(f.channel_names, f.intensities, strict=True)
    ]
    header = ("channel", "least", "0.5 %", "median", "mean", "deviation", "99.5 %", "greatest")
    return _table(header, rows, numbers=range(1, 8))


def _label_table(f: Fingerprint) -> str:
    rows = []
    for name, value in f.foreground_labels.items():
        present = [case for case in f.cases if value in case.label_voxels]
        ml = [case.label_ml(value) for case in present]
        voxels = [case.label_voxels[value] for case in present]
        figures = (
            (
                f"{np.median(voxels):,.0f}",
                format_number(float(np.median(ml))),
                f"{format_number(min(ml))} to {format_number(max(ml))}",
            )
            if present
            else ("–", "–", "–")
        )
        rows.append((name, f"{value}", f"{len(present)} of {len(f.cases)}", *figures))
    header = ("label", "value", "cases", "median voxels", "median ml", "range, ml")
    return _table(header, rows, numbers=range(1, 6))


def _case_table(f: Fingerprint) -> str:
    rows = [
        (
            case.id,
            _times(case.shape),
            _times(case.spacing),
            case.orientation,
            percent(case.relative_size),
            percent(case.foreground_fraction),
        )
        for case in f.cases
    ]
    return _table(
        ("case", "voxels", "spacing, mm", "stored as", "left by the crop", "foreground"), rows, numbers=(4, 5)
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    right = set(numbers)

    def cells(values: Sequence[str], tag: str) -> str:
        marks = [' class="number"' if place in right else "" for place in range(len(values))]
        return "".join(f"<{tag}{m}>{_text(value)}</{tag}>" for m, value in zip(marks, values, strict=True))

    head = f"<tr>{cells(header, 'th')}</tr>" if any(header) else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _figure(picture: ReportFigure, caption: str) -> str:
    data = base64.b64encode(as_png(picture)).decode()
    return f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}"><figcaption>{_text(caption)}</figcaption></figure>'


def _text(value: str) -> str:
    return escape(single_line(value), quote=True)


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
