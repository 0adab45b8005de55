"""The page of ``medseg evaluate --report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.evaluation.cross_validation.table import FoldTable
    from medseg.evaluation.instances.table import InstanceTable
    from medseg.evaluation.label_maps.table import Table
    from medseg.labels.label_table import Labels
    from medseg.runtime.progress import Progress


def write_page(
    options: argparse.Namespace,
    folder: Path,
    result: Table | FoldTable | InstanceTable,
    pairs: Sequence[Any],
    labels: Labels | None,
) -> None:
    """Write ``report.html`` next to the tables, with a progress bar.

    Args:
        options: The parsed options.
        folder: Folder of the tables.
        result: What was evaluated.
        pairs: Predictions and references.
        labels: Names of the values, if they are known.
    """
    from medseg.runtime.progress import progress_bar

    page = folder / "report.html"
    with progress_bar(description="writing the report", total=len(pairs)) as progress:
        if options.reference is None:
            _of_run(page, options, result, pairs, labels, progress)
        else:
            _of_files(page, options, result, pairs, labels, progress)
    print(f"report: {page}")


def _of_run(
    page: Path,
    options: argparse.Namespace,
    result: Any,
    pairs: Sequence[Any],
    labels: Any,
    progress: Progress,
) -> None:
    from medseg.evaluation.instances.table import InstanceTable
    from medseg.experiment.run_folder import RunFolder
    from medseg.experiment.run_report import write_run_instance_report, write_run_report

    write = write_run_instance_report if isinstance(result, InstanceTable) else write_run_report
    write(RunFolder(Path(options.prediction)), page, result, pairs, labels, progress=progress)


def _of_files(
    page: Path,
    options: argparse.Namespace,
    result: Any,
    pairs: Sequence[Any],
    labels: Labels | None,
    progress: Progress,
) -> None:
    from medseg.evaluation.instances.table import InstanceTable
    from medseg.report.case_files import cases_of_instance_pairs, cases_of_pairs, images_of_folder
    from medseg.report.evaluation_report import ReportContext, write_evaluation_report
    from medseg.report.instance_report import write_instance_report
    from medseg.report.origin import origin_of_files

    files = {
        "predictions": options.prediction,
        "references": options.reference,
        "images": options.image_folder,
        "labels": options.labels,
    }
    context = ReportContext(
        f"Evaluation of {Path(options.prediction).name}",
        {} if labels is None else labels.colours,
        origin_of_files(files, result.options.to_plain()),
    )
    images = images_of_folder(options.image_folder) if options.image_folder else {}
    if isinstance(result, InstanceTable):
        cases = cases_of_instance_pairs(pairs, images, labels, result.options.matching_iou)
        write_instance_report(page, result, cases, context, progress=progress)
    else:
        write_evaluation_report(
            page, result, cases_of_pairs(pairs, images, labels), context, progress=progress
        )
