"""``medseg compare``: rank cross-validated runs by Dice or another metric, and optionally ensembles of two of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import require_paths

if TYPE_CHECKING:
    from medseg.evaluation.cross_validation.compare_runs import Comparison
    from medseg.report.report_case import ReportCase


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("compare", help="rank cross-validated runs", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders written by `medseg train --all-folds`, at least two"
    )
    parser.add_argument(
        "--ensembles",
        action="store_true",
        help="also rank every ensemble of two runs; this predicts all cases again",
    )
    parser.add_argument(
        "--metric",
        default="dice",
        metavar="NAME",
        help="column of cases.tsv by which to rank, such as surface_dice, hd95_mm or cldice (default: dice)",
    )
    parser.add_argument("--report", action="store_true", help="also write comparison.html; needs --output")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="folder for comparison.tsv and comparison_labels.tsv"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.errors import ConfigError

    if options.report and not options.output:
        raise ConfigError("--report: found no folder for it, expected --output FOLDER. Add it.")
    if options.ensembles and options.metric != "dice":
        raise ConfigError(
            "--metric: found it with --ensembles, which are ranked by Dice. Remove one of them."
        )
    require_paths(options.runs, "folder", expected="a cross-validation", error=ConfigError)
    from medseg.evaluation.cross_validation.compare_runs import compare_cross_validations
    from medseg.storage.atomic import check_folder

    if options.output:
        check_folder(options.output)
    comparison = (
        _with_ensembles(options.runs)
        if options.ensembles
        else compare_cross_validations(options.runs, options.metric)
    )
    print(comparison)
    first, *others = (Path(run) / "model" for run in comparison.best.runs)
    ensemble = "".join(f" --ensemble-with {other}" for other in others)
    print(f"use it: medseg predict {first} IMAGES -o FOLDER{ensemble}")
    if options.output:
        _write(comparison, Path(options.output), report=options.report)
    return 0


def _write(comparison: Comparison, folder: Path, *, report: bool) -> None:
    """Write the tables and, if wanted, the page."""
    from medseg.report.comparison_report import write_comparison_report
    from medseg.report.report_page import remove_outdated_page
    from medseg.runtime.progress import progress_bar

    comparison.write_tsv(folder / "comparison.tsv")
    comparison.write_labels_tsv(folder / "comparison_labels.tsv")
    print(f"tables: {folder / 'comparison.tsv'}, {folder / 'comparison_labels.tsv'}")
    if remove_outdated_page(folder / "comparison.html", "Comparison") and not report:
        print(
            f"removed: {folder / 'comparison.html'}, the page of an earlier comparison (--report writes a new one)"
        )
    if report:
        with progress_bar(description="writing the report", total=comparison.cases) as progress:
            write_comparison_report(
                folder / "comparison.html", comparison, _cases(comparison), progress=progress
            )
        print(f"report: {folder / 'comparison.html'}")


def _cases(comparison: Comparison) -> Sequence[ReportCase]:
    """Return the cases with the predictions of all runs, those of the best one first; print why if there are none."""
    from medseg.errors import MedsegError
    from medseg.experiment.cross_validation.comparison_cases import comparison_cases

    ordered = (comparison.best, *(one for one in comparison.runs if one is not comparison.best))
    try:
        return comparison_cases(list(dict.fromkeys(run for one in ordered for run in one.runs)))
    except MedsegError as error:
        print(f"the page has no viewers: {error}", file=sys.stderr)
        return []


def _with_ensembles(runs: Sequence[str]) -> Comparison:
    """Compare the runs and every ensemble of two of them, showing progress."""
    from medseg.experiment.cross_validation.ensemble_candidates import compare_with_ensembles
    from medseg.runtime.progress import progress_bar

    with progress_bar() as progress:
        return compare_with_ensembles(runs, progress=progress)
