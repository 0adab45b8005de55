"""``medseg pull``: download a model folder from the Hugging Face hub (extra ``medseg[hub]``)."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("pull", help="download a model folder from a model hub", description=__doc__)
    parser.add_argument("name", metavar="OWNER/NAME", help="repository, or OWNER/NAME@REVISION")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="model folder to write (default: NAME in this folder)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.model_folder.hub import pull_model
    from medseg.model_folder.licences import state_licences
    from medseg.model_folder.settings import SavedModel

    folder = pull_model(options.name, _output(options))
    state_licences(SavedModel.load(folder / "config.yaml"), folder)
    print(f"model: {folder}")
    return 0


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows."""
    return ("predict", shlex.quote(str(_output(options))), "IMAGES", "-o", "FOLDER")


def _output(options: argparse.Namespace) -> Path:
    return Path(options.output or options.name.split("@")[0].rpartition("/")[2])
