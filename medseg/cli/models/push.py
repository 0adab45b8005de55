"""``medseg push``: upload a model folder to the Hugging Face hub (extra ``medseg[hub]``)."""

from __future__ import annotations

import argparse
from typing import Any

from medseg.cli.early_checks import require_paths
from medseg.errors import ModelError


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("push", help="upload a model folder to a model hub", description=__doc__)
    parser.add_argument("model", help="model folder: RUN/model, or a finished RUN")
    parser.add_argument(
        "name", metavar="OWNER/NAME", help="repository, which is created if it does not exist"
    )
    parser.add_argument(
        "--public", action="store_true", help="let everybody see a new repository (default: it is private)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.model], "folder", expected="a model folder", error=ModelError)
    from medseg.model_folder.hub import push_model

    print(f"uploaded: {push_model(options.model, options.name, public=options.public)}")
    return 0
