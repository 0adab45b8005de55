"""``medseg evaluate``: compare label maps or instances with references."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medseg.cli.early_checks import require_paths
from medseg.cli.prediction.evaluate_options import (
    add_instance_options,
    add_metric_options,
    given_instance_options,
    given_metric_options,
    require_metrics_of_options,
)
from medseg.cli.prediction.evaluate_page import write_page
from medseg.cli.reading_options import add_cluster_option, add_reading_options, reading_options
from medseg.runtime.formatting import pluralise

if TYPE_CHECKING:
    from medseg.experiment.run_folder import RunFolder

Row = TypeVar("Row")


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("evaluate", help="compare predictions with references", description=__doc__)
    parser.add_argument(
        "prediction", help="label map, folder of label maps, or a run (evaluates its held-out cases)"
    )
    parser.add_argument("reference", nargs="?", help="label map or folder; omit it for a run")
    parser.add_argument(
        "--only-predicted",
        action="store_true",
        help="with two folders: skip references that have no prediction",
    )
    parser.add_argument("--labels", metavar="TSV", help="label table with the columns value and name")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder for cases.tsv and summary.json")
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write report.html: figures with intervals, every case with a viewer, worst first; needs --output for files",
    )
    parser.add_argument(
        "--images",
        dest="image_folder",
        metavar="FOLDER",
        help="with --report and files: the images, named as the predictions",
    )
    add_cluster_option(parser, "cases")
    add_reading_options(parser, images=False)
    add_metric_options(parser)
    add_instance_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.errors import ConfigError

    by_instance = options.instances or options.components_of is not None
    if options.only_predicted and (by_instance or options.reference is None):
        raise ConfigError(
            "--only-predicted: found it without two folders of label maps, expected these. Remove it."
        )
    if options.report and options.reference is not None and options.output is None:
        raise ConfigError("--report: found no folder for it, expected --output FOLDER. Add it.")
    if options.image_folder and not options.report:
        raise ConfigError("--images: found it without --report, expected both. Add --report.")
    if not by_instance and (given := given_instance_options(options)):
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{name}: found it without --instances. Add --instances, or remove it.")
    if by_instance and (given := given_metric_options(options)):
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(
            f"--{name}: found it with --instances, which measures no label maps. Remove one of them."
        )
    require_paths([options.prediction, options.reference, options.labels, options.image_folder])
    if options.image_folder:
        from medseg.report.case_files import images_of_folder

        images_of_folder(options.image_folder)  # before the cases are measured, which may take hours
    _check_output(options.output)
    return _instances(options) if by_instance else _label_maps(options)


def _check_output(folder: str | None) -> None:
    """Raise `ConfigError` if the tables would replace those of a prediction."""
    from medseg.errors import ConfigError
    from medseg.inference.cohort.written_files import FOLDER

    if folder is not None and (Path(folder) / FOLDER).is_dir():
        raise ConfigError(
            f"--output: {folder}: found a folder of predictions, whose cases.tsv would be replaced, expected another one. "
            f"Give for example {Path(folder) / 'evaluation'}."
        )
    if (
        folder is not None
        and (Path(folder) / "cases.tsv").is_file()
        and not (Path(folder) / "summary.json").is_file()
    ):
        raise ConfigError(
            f"--output: {folder}: found a cases.tsv that is no evaluation and would be replaced, expected another folder. "
            f"Give for example {Path(folder) / 'evaluation'}."
        )


def _label_maps(options: argparse.Namespace) -> int:
    from medseg.data.datasets.names import subjects_by_name
    from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS
    from medseg.evaluation.label_maps.metrics import with_absent_labels
    from medseg.evaluation.label_maps.pairs import pair_files
    from medseg.evaluation.label_maps.table import Table
    from medseg.evaluation.measured_cases import LabelMapEvaluator
    from medseg.experiment.run_folder import RunFolder
    from medseg.labels.label_table import Labels

    prediction, base = Path(options.prediction), DEFAULT_OPTIONS
    if options.reference is None and RunFolder(prediction).is_cross_validation:
        return _folds(RunFolder(prediction), options)
    if options.reference is None:
        from medseg.experiment.held_out import held_out_pairs, subjects_of_run

        pairs, known, settings = held_out_pairs(RunFolder(prediction), reading_options(options))
        subjects = subjects_of_run(RunFolder(prediction))
        labels: Labels | None = known
        base = settings.options
    else:
        found = pair_files(prediction, Path(options.reference), only_predicted=options.only_predicted)
        pairs = [replace(pair, reading=reading_options(options)) for pair in found]
        labels = Labels.from_tsv(options.labels) if options.labels else None
        subjects = subjects_by_name(pair.case for pair in pairs)
    wanted = replace(base, **given_metric_options(options))
    require_metrics_of_options(options, wanted.metrics)
    _make_output_folder(options)
    measured, failed = _measured(pairs, LabelMapEvaluator(labels, wanted), prediction, options.cluster)
    rows = with_absent_labels(measured, wanted) if labels is None else _flat(measured)
    table = Table(tuple(rows), wanted, subjects)
    code = _report(table, failed, len(pairs), options)
    if options.reference is None:
        _write_card(RunFolder(prediction), table)
    if options.report:
        write_page(options, _output_folder(options), table, pairs, labels)
    return code


def _folds(run: RunFolder, options: argparse.Namespace) -> int:
    """Evaluate the out-of-fold predictions of a cross-validation and return the exit code."""
    from medseg.experiment.cross_validation.aggregate import fold_table, no_post_processing_reason
    from medseg.experiment.cross_validation.out_of_fold import held_out_by_fold
    from medseg.experiment.held_out import held_out_pairs
    from medseg.runtime.progress import progress_bar

    held_out_by_fold(run)  # raises if a fold is not finished
    wanted = replace(run.read_experiment().evaluate.options, **given_metric_options(options))
    require_metrics_of_options(options, wanted.metrics)
    _make_output_folder(options)
    with progress_bar(description="measuring", describe=True) as progress:
        table = fold_table(
            run,
            options=wanted,
            reading=reading_options(options),
            progress=progress,
            cluster=options.cluster,
        )
    code = _report(table, 0, len(table.table.cases), options)
    _write_card(run, table)
    if options.report:
        pairs, labels, _ = held_out_pairs(run, reading_options(options))
        write_page(options, _output_folder(options), table, pairs, labels)
    reason = no_post_processing_reason(run)
    if reason is not None:
        print(reason)
    return code


def _write_card(run: RunFolder, table: Any) -> None:
    """Write the figures to the card of the model that was evaluated."""
    from medseg.experiment.held_out import add_run_figures

    folder = add_run_figures(run, table.summary())
    if folder is not None:
        print(f"model card: {folder / 'README.md'}")


def _instances(options: argparse.Namespace) -> int:
    from medseg.data.datasets.names import subjects_by_name
    from medseg.evaluation.instances.instance_options import InstanceOptions
    from medseg.evaluation.instances.pairs import instance_pairs
    from medseg.evaluation.instances.table import InstanceTable
    from medseg.evaluation.measured_cases import InstanceEvaluator
    from medseg.labels.label_table import Labels

    prediction, wanted = Path(options.prediction), InstanceOptions(**given_instance_options(options))
    if options.reference is None:
        from medseg.experiment.held_out import held_out_instances, subjects_of_run
        from medseg.experiment.run_folder import RunFolder

        pairs, known = held_out_instances(RunFolder(prediction), reading_options(options))
        subjects = subjects_of_run(RunFolder(prediction))
        labels: Labels | None = known
    else:
        matched = instance_pairs(prediction, Path(options.reference), options.components_of or "neither")
        pairs = [replace(pair, reading=reading_options(options)) for pair in matched]
        labels = Labels.from_tsv(options.labels) if options.labels else None
        subjects = subjects_by_name(pair.case for pair in pairs)
    _make_output_folder(options)
    measured, failed = _measured(pairs, InstanceEvaluator(labels, wanted), prediction, options.cluster)
    table = InstanceTable(tuple(_flat(measured)), wanted, subjects)
    code = _report(table, failed, len(pairs), options)
    if wanted.size_bounds_mm3 and (options.output or options.reference is None):
        table.write_sizes_tsv(_output_folder(options) / "sizes.tsv")
        print(f"by size: {_output_folder(options) / 'sizes.tsv'}")
    if options.report:
        write_page(options, _output_folder(options), table, pairs, labels)
    return code


def _measured(
    pairs: Sequence[Any], measure: Callable[[Any], list[Row]], prediction: Path, cluster: str | None
) -> tuple[list[tuple[str, list[Row]]], int]:
    """Return id and rows of the cases that can be evaluated, and how many cannot; these are reported on standard error."""
    from medseg.errors import DataError
    from medseg.evaluation.measured_cases import measured_cases
    from medseg.runtime.progress import progress_bar

    found: dict[int, list[Row]] = {}
    with (
        progress_bar(description="measuring", total=len(pairs)) as bar,
        closing(measured_cases(pairs, measure, cluster)) as outcomes,
    ):
        for number, (index, result) in enumerate(outcomes, 1):
            if isinstance(result, list):
                found[index] = result
            elif len(pairs) == 1:
                raise result
            else:
                bar.write(str(result), file=sys.stderr)
            bar(number, len(pairs), pairs[index].case)
    failed = len(pairs) - len(found)
    if not found:
        raise DataError(
            f"{prediction}: none of {pluralise(len(pairs), 'case')} could be evaluated. Fix the errors listed above."
        )
    if not any(found.values()):
        raise DataError(
            f"{prediction}: found no label in the predictions and references of {pluralise(len(found), 'case')}, expected at "
            "least one. Name the labels to evaluate with --labels TSV."
        )
    return [(pairs[index].case, found[index]) for index in sorted(found)], failed


def _flat(cases: Sequence[tuple[str, list[Row]]]) -> list[Row]:
    """Return the rows of all cases."""
    return [row for _, rows in cases for row in rows]


def _report(table: Any, failed: int, cases: int, options: argparse.Namespace) -> int:
    """Print and write a table; return the exit code, which is 2 if cases are missing from it."""
    from medseg.report.report_page import remove_outdated_page

    print(table)
    if options.reference is not None:
        _print_left_out(options.prediction, options.reference)
    if failed:
        print(
            f"{failed} of {pluralise(cases, 'case')} could not be evaluated and {'is' if failed == 1 else 'are'} not in the means"
        )
    if options.output or options.reference is None:
        output = _output_folder(options)
        # A cases.tsv without a summary would be refused as that of something else, also after a process was killed here.
        table.write_summary(output / "summary.json")
        table.write_tsv(output / "cases.tsv")
        print(f"tables: {output / 'cases.tsv'}, {output / 'summary.json'}")
        if remove_outdated_page(output / "report.html", "Evaluation") and not options.report:
            print(
                f"removed: {output / 'report.html'}, the page of an earlier evaluation (--report writes a new one)"
            )
    return 2 if failed else 0


def _print_left_out(prediction: str, reference: str) -> None:
    """Print one line if there are predictions without a reference."""
    from medseg.evaluation.label_maps.pairs import predictions_without_reference

    cases = predictions_without_reference(prediction, reference)
    if cases:
        names = ", ".join(cases[:5]) + (" ..." if len(cases) > 5 else "")
        verb = "was" if len(cases) == 1 else "were"
        print(f"{pluralise(len(cases), 'prediction')} without a reference {verb} left out: {names}")


def _make_output_folder(options: argparse.Namespace) -> None:
    """Create the folder for tables, if there are any; raise `DataError` before cases are measured if it cannot be written."""
    from medseg.storage.atomic import check_folder

    if options.output or options.reference is None:
        check_folder(_output_folder(options))


def _output_folder(options: argparse.Namespace) -> Path:
    """Return the folder for tables: the one that was given, or that of the run."""
    if options.output:
        return Path(options.output)
    by_instance = options.instances or options.components_of
    return Path(options.prediction) / ("evaluation/instances" if by_instance else "evaluation")
