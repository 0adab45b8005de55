"""``report.html`` of the evaluation of a run: its held-out cases, its learning curve and where its model comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.instances.pairs import InstancePair
from medseg.evaluation.instances.table import InstanceTable
from medseg.evaluation.label_maps.pairs import Pair
from medseg.evaluation.label_maps.table import Table
from medseg.experiment.held_out import dataset_of_run, held_out_cases
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.model_id import model_hash
from medseg.labels.label_table import Labels
from medseg.report.case_files import cases_of_instance_pairs, cases_of_pairs
from medseg.report.evaluation_report import ReportContext, write_evaluation_report
from medseg.report.instance_report import write_instance_report
from medseg.runtime.progress import Progress
from medseg.storage.json_files import read_object
from medseg.train.reports.reporting import read_metrics


def write_run_report(
    run: RunFolder,
    path: str | Path,
    result: Table | FoldTable,
    pairs: Sequence[Pair],
    labels: Labels,
    *,
    progress: Progress | None = None,
) -> None:
    """Write the page of an evaluated run.

    Args:
        run: The run, or the cross-validation.
        path: The HTML file.
        result: Its evaluation.
        pairs: Predictions and references of its held-out cases.
        labels: Labels of the run.
        progress: Called with the number of cases done, their total number and a word.

    Raises:
        ConfigError: The folder is not a run.
        DataError: The dataset cannot be read, or the file cannot be written.
    """
    cases = cases_of_pairs(pairs, _images(run), labels)
    write_evaluation_report(path, result, cases, _context(run, labels), progress=progress)


def write_run_instance_report(
    run: RunFolder,
    path: str | Path,
    table: InstanceTable,
    pairs: Sequence[InstancePair],
    labels: Labels,
    *,
    progress: Progress | None = None,
) -> None:
    """Write the page of the instances of an evaluated run.

    Args:
        run: The run, or the cross-validation.
        path: The HTML file.
        table: Its evaluation.
        pairs: Predictions and references of its held-out cases.
        labels: Labels of the run.
        progress: Called with the number of cases done, their total number and a word.

    Raises:
        ConfigError: The folder is not a run.
        DataError: The dataset cannot be read, or the file cannot be written.
    """
    cases = cases_of_instance_pairs(pairs, _images(run), labels, table.options.matching_iou)
    write_instance_report(path, table, cases, _context(run, labels), progress=progress)


def _images(run: RunFolder) -> dict[str, Case]:
    return {case.id: replace(case, label=None) for case in held_out_cases(run)}


def _context(run: RunFolder, labels: Labels) -> ReportContext:
    return ReportContext(
        f"Evaluation of {run.path.name}",
        labels.colours,
        _origin(run),
        read_metrics(run.metrics) if run.metrics.is_file() else (),
        run.config.read_text(encoding="utf-8"),
    )


def _origin(run: RunFolder) -> dict[str, str]:
    """Return the rows of the table of origin: data, model and versions."""
    dataset, experiment = dataset_of_run(run), run.read_experiment()
    rows = {
        "dataset": f"{dataset.name}: {len(dataset.cases)} cases",
        "network": experiment.model.name,
        "model": model_hash(run.model) if run.is_finished else "not finished",
    }
    if run.environment.is_file():
        environment = read_object(run.environment)
        rows |= {
            name: str(value)
            for name, value in {**environment, **environment.get("packages", {})}.items()
            if isinstance(value, str | int | float)
        }
    return rows
