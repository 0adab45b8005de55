"""The option of ``medseg import`` for the licence of weights."""

from __future__ import annotations

import argparse


def add_licence_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--licence``."""
    parser.add_argument(
        "--licence",
        metavar="NAME",
        help="licence of the weights for the model card, such as cc-by-4.0; one that excludes commercial use is stated in "
        "predictions, too",
    )
