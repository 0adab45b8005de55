"""``medseg config``: print the resolved experiment, or its JSON schema."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "config", help="print an experiment with all defaults filled in", description=__doc__
    )
    parser.add_argument("config", nargs="?", help="YAML experiment (default: all default values)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="values to change")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema, for editors, instead")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.experiment.experiment import Experiment

    if options.schema:
        print(json.dumps(Experiment.model_json_schema(mode="validation"), indent=2))
        return 0
    experiment = Experiment.load(options.config, *options.overrides) if options.config else Experiment()
    print(experiment.to_yaml(), end="")
    return 0
