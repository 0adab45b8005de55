"""``medseg import``: convert a model trained with another program to a model folder."""

from __future__ import annotations

import argparse
import shlex
from importlib import import_module
from typing import Any

SOURCES = ("nnunet", "totalsegmentator", "monai")


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "import", help="convert a model of another program to a model folder", description=__doc__
    )
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for source in SOURCES:
        import_module(f"medseg.cli.models.import_{source}").add_parser(sources)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    return int(import_module(f"medseg.cli.models.import_{options.source}").run(options))


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    return ("predict", shlex.quote(options.output), "IMAGES", "-o", "FOLDER")
