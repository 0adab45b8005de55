"""``report.html`` of a folder of predictions: every case with a viewer, the volumes of all labels, and what failed.

The figures are those of the records of the folder, as in ``cases.tsv`` and ``volumes.tsv``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_image
from medseg.inference.cohort.case_records import CaseRecord, CaseRecords, CaseState
from medseg.inference.cohort.output_files import OutputFiles
from medseg.inference.cohort.written_files import uncertainty_path
from medseg.inference.quality.case_quality import CaseQuality
from medseg.io.files import read, read_labels
from medseg.labels.colours import colour_to_css, distinct_colour
from medseg.labels.label_table import Labels
from medseg.report.report_case import ReportCase
from medseg.report.report_page import MAX_BYTES, ReportPage, format_figure
from medseg.report.svg_plots import strip_plot
from medseg.runtime.formatting import single_line
from medseg.runtime.progress import Progress
from medseg.viz.viewer.viewer_case import ViewerCase

_WIDEST = 3.0  # the end of the axis of relative volumes
NOT_PREDICTED = "not predicted"


def write_prediction_report(
    path: str | Path,
    cases: Sequence[tuple[str, Case]],
    outputs: OutputFiles,
    labels: Labels,
    *,
    models: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the page of predicted cases atomically.

    Args:
        path: The HTML file.
        cases: Names of the label maps, and the cases. Those without a finished record are shown as not predicted.
        outputs: Where the label maps are.
        labels: Labels of the model.
        models: One line about each model.
        max_bytes: Size of the page; volumes are reduced until they fit.
        progress: Called with the number of cases done, their total number and a word.

    Raises:
        DataError: A record has another format, or the file cannot be written.
    """
    records = CaseRecords(outputs.folder)
    found = sorted(((name, case, records.get(name)) for name, case in cases), key=_order)
    page = ReportPage(len(found), max_bytes, progress)
    rows = []
    for name, case, record in found:
        rows.append({**_row(name, record), **page.add(_report_case(name, case, record, outputs, labels))})
    states = [row["state"] for row in rows]
    to_review = sum(bool(row["flags"]) for row in rows)
    page.write(
        path,
        "prediction.html.j2",
        title=f"Predictions in {single_line(outputs.folder.resolve().name)}",
        summary=[
            (str(states.count(CaseState.PREDICTED.value)), "predicted", f"of {len(rows)} cases"),
            (str(states.count(CaseState.FAILED.value)), "failed", ""),
            (str(to_review), "to review", "listed first"),
        ],
        labels=_label_rows(rows, labels),
        plot=_volume_plot(rows, labels),
        cases=rows,
        models=models,
        any_flags=to_review > 0,
        any_expected=any(row["expected"][1] for row in rows),
        coverage=next((one.coverage for *_, r in found if (one := _quality(r)).has_intervals), None),
    )


def _order(item: tuple[str, Case, CaseRecord | None]) -> tuple[bool, int, bool, str]:
    """Return the place of a case: failed ones first, then those with most flags, then those with remarks, then by name."""
    name, _, record = item
    done = record is not None and record.state is CaseState.PREDICTED
    remarks = done and record is not None and record.prediction is not None and bool(record.prediction.notes)
    return done, -len(_quality(record).flags), not remarks, name


def _quality(record: CaseRecord | None) -> CaseQuality:
    found = None if record is None or record.prediction is None else record.prediction.quality
    return found or CaseQuality()


def _row(name: str, record: CaseRecord | None) -> dict[str, Any]:
    prediction = None if record is None else record.prediction
    return {
        "id": name,
        "subject": "",
        "state": NOT_PREDICTED if record is None else record.state.value,
        "message": "" if record is None else record.message,
        "seconds": 0.0 if record is None else record.seconds,
        "volumes": {} if prediction is None else {one.name: one.ml for one in prediction.volumes},
        "flags": _quality(record).flags,
        "estimates": {one.name: one for one in _quality(record).labels},
        "expected": _lowest_expected(_quality(record)),
    }


def _lowest_expected(quality: CaseQuality) -> tuple[float, str]:
    """Return the lowest expected Dice of a case and its label; NaN if there is no estimate."""
    known = [(one.dice, one.name) for one in quality.labels if one.dice is not None]
    return min(known, default=(math.nan, ""))


def _report_case(
    name: str, case: Case, record: CaseRecord | None, outputs: OutputFiles, labels: Labels
) -> ReportCase:
    if record is None or record.state is not CaseState.PREDICTED:
        return ReportCase(name)
    flagged = [flag.sentence for flag in _quality(record).flags]  # which are listed by themselves
    notes = () if record.prediction is None else record.prediction.notes
    others = tuple(note for note in notes if not any(sentence in note for sentence in flagged))
    label_map = outputs.label_map_path(name)
    uncertainty = uncertainty_path(label_map) if outputs.uncertainty else None
    return ReportCase(name, partial(_opened, name, case, label_map, labels, uncertainty), others)


def _opened(name: str, case: Case, label_map: Path, labels: Labels, uncertainty: Path | None) -> ViewerCase:
    overlays = {} if uncertainty is None else {"uncertainty": read(uncertainty)}
    return ViewerCase(
        name,
        read_case_image(case),
        {"prediction": read_labels(label_map, like=case.images[0])},
        labels=labels,
        overlays=overlays,
    )


def _volumes_by_label(rows: Sequence[Mapping[str, Any]], labels: Labels) -> dict[str, dict[str, float]]:
    """Return, for each label, its volume in ml in each case where it was measured."""
    names = [one.name for one in labels.evaluated]
    return {
        name: {row["id"]: row["volumes"][name] for row in rows if name in row["volumes"]} for name in names
    }


def _label_rows(rows: Sequence[Mapping[str, Any]], labels: Labels) -> list[dict[str, Any]]:
    colours, found = labels.colours, []
    for place, (name, by_case) in enumerate(_volumes_by_label(rows, labels).items(), start=1):
        present = np.array([ml for ml in by_case.values() if ml > 0])
        middle = np.percentile(present, (0, 25, 50, 75, 100)) if present.size else [None] * 5
        found.append(
            {
                "name": name,
                "colour": colour_to_css(colours.get(name, distinct_colour(place))),
                "n": present.size,
                "absent": len(by_case) - present.size,
                "volumes": [format_figure(None if ml is None else float(ml), 2) for ml in middle],
            }
        )
    return found


def _volume_plot(rows: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """Draw the volumes of each label relative to its median."""
    relative = {}
    for name, by_case in _volumes_by_label(rows, labels).items():
        present = [ml for ml in by_case.values() if ml > 0]
        if present:
            median = float(np.median(present))
            relative[name] = {case: ml / median for case, ml in by_case.items()}
    return strip_plot(relative, labels.colours, low=0.0, high=_WIDEST) if relative else ""
