"""``medseg check``: look for mistakes in datasets, images, model folders and runs, with the place and remedy of each."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import require_paths
from medseg.cli.output_names import HTML, YAML, check_output_name, check_report_name
from medseg.cli.reading_options import add_dataset_options, reading_options

if TYPE_CHECKING:
    from medseg.check.check_report import Report

EXIT_ERRORS = 2


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("check", help="look for mistakes in data and models", description=__doc__)
    parser.add_argument(
        "paths", nargs="+", help="dataset folders or tables, image files, model folders or runs"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the findings as JSON; - prints JSON instead of text"
    )
    parser.add_argument(
        "--html",
        nargs="?",
        const="check.html",
        metavar="FILE",
        help="write a page with the findings and an image of every case (default name: check.html)",
    )
    parser.add_argument(
        "--splits", metavar="FILE", help="JSON file with splits to check (default: the one in the folder)"
    )
    parser.add_argument(
        "--repair",
        metavar="FILE",
        help="propose repairs, which --repairs or data.repairs applies when files are read; no file of the dataset is changed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file of repairs")
    parser.add_argument("--all", action="store_true", help="list every finding (default: 20 of each code)")
    add_dataset_options(parser, "check")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code: 2 if there are errors."""
    from medseg.errors import ConfigError

    if options.repair is not None and Path(options.repair).exists() and not options.overwrite:
        raise ConfigError(
            f"{options.repair}: found a file, expected a new one, because a file of repairs may have been edited. Choose another "
            "name, or give --overwrite."
        )
    check_output_name(options.html, "--html", HTML)
    check_output_name(options.repair, "--repair", YAML)
    check_report_name(options.json, "--json")
    require_paths(options.paths)
    from medseg.check.check_paths import check_paths
    from medseg.check.datasets.check_dataset import CheckOptions
    from medseg.runtime.progress import progress_bar

    with progress_bar(description="checking") as progress:
        report = check_paths(
            options.paths,
            CheckOptions(
                layout=options.layout,
                reading=reading_options(options),
                splits=None if options.splits is None else Path(options.splits),
                workers=options.workers,
                images=options.html is not None,
                progress=progress,
            ),
        )
    _write(report, options)
    return EXIT_ERRORS if report.counts["error"] else 0


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    from medseg.data.datasets.layouts import is_dataset

    (path, *others) = options.paths
    if others or options.json == "-" or not is_dataset(Path(path)):
        return ()
    return ("plan", shlex.quote(path), "-o", "plan.yaml")


def _write_repairs(report: Report, options: argparse.Namespace) -> None:
    """Write proposals of repairs of the only dataset, and print what they do."""
    from collections import Counter

    from medseg.check.propose_repairs import propose_repairs
    from medseg.errors import ConfigError

    if len(report.datasets) != 1:
        raise ConfigError(
            f"--repair: found {len(report.datasets)} datasets, expected one. Check each dataset by itself."
        )
    repairs = propose_repairs(report.datasets[0])
    repairs.save(options.repair)
    counts = Counter(repair.action for repair in repairs.repairs)
    print(
        f"repairs: {options.repair} ({', '.join(f'{n} {action}' for action, n in counts.items()) or 'none'})",
        file=sys.stderr,
    )


def _write(report: Report, options: argparse.Namespace) -> None:
    """Print the report and write the files that the user asked for."""
    from medseg.check.check_page import write_page
    from medseg.storage.atomic import write_text

    if options.json == "-":
        print(report.json(), end="")
    else:
        print(report.text(0 if options.all else 20))
    if options.json not in (None, "-"):
        write_text(options.json, report.json())
    if options.repair is not None:
        _write_repairs(report, options)
    if options.html is not None:
        write_page(report, options.html)
