"""``medseg clean``: list prepared cases that no run uses, and what killed processes have left, and remove them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medseg.cli.early_checks import require_paths


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("clean", help="remove prepared cases that no run uses", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", default="runs", help="folder that contains the runs (default: runs)"
    )
    parser.add_argument("--yes", action="store_true", help="remove what is listed (default: only list it)")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.folder], "folder", expected="the folder of runs", fix="Give that folder.")
    from medseg.experiment.prepared_cases import find_unused
    from medseg.runtime.formatting import pluralise
    from medseg.runtime.memory import format_size

    found = find_unused(Path(options.folder))
    for item in found.items:
        print(f"{format_size(item.size):>10}  {item.path}  ({item.why})")
    for sentence in found.kept:
        print(f"kept: {sentence}")
    total = f"{format_size(found.size)} in {pluralise(len(found.items), 'place')}"
    if not found.items:
        print(f"{options.folder}: nothing to remove")
    elif options.yes:
        found.remove()
        print(f"removed: {total}")
    else:
        print(f"unused: {total}; nothing was removed. Remove it with: medseg clean {options.folder} --yes")
    return 0
