"""The cases of the page of a comparison: image, reference, and the prediction of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_image
from medseg.evaluation.label_maps.pairs import Pair
from medseg.experiment.held_out import held_out_cases, held_out_pairs
from medseg.experiment.run_folder import RunFolder
from medseg.labels.label_table import Labels
from medseg.report.report_case import ReportCase
from medseg.viz.viewer.viewer_case import REFERENCE, ViewerCase


def comparison_cases(runs: Sequence[str | Path]) -> list[ReportCase]:
    """Return the held-out cases of compared runs for a report. Nothing but headers of the dataset is read yet.

    Args:
        runs: Folders of cross-validations of the same cases, the one whose predictions are shown first at the beginning.

    Returns:
        One case per held-out case, whose viewer shows the predictions of all runs and the reference.

    Raises:
        ConfigError: A folder is not a run.
        DataError: The dataset cannot be read, or predictions are missing.
    """
    found = [held_out_pairs(RunFolder(Path(run))) for run in runs]
    labels = found[0][1]
    images = {case.id: replace(case, label=None) for case in held_out_cases(RunFolder(Path(runs[0])))}
    by_run = {
        name: {pair.case: pair for pair in pairs}
        for name, (pairs, _, _) in zip(_names(runs), found, strict=True)
    }
    return [
        ReportCase(case, partial(_opened, image, {name: own[case] for name, own in by_run.items()}, labels))
        for case, image in images.items()
        if all(case in own for own in by_run.values())
    ]


def _names(runs: Sequence[str | Path]) -> list[str]:
    """Return the names of the folders; with their place where two are equal."""
    names = [Path(run).resolve().name for run in runs]
    taken = [*names, REFERENCE]
    return [
        name if taken.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)
    ]


def _opened(image: Case, pairs: dict[str, Pair], labels: Labels) -> ViewerCase:
    maps = {}
    for name, pair in pairs.items():
        maps[name], reference = pair.volumes()
    return ViewerCase(image.id, read_case_image(image), {**maps, REFERENCE: reference}, labels=labels)
