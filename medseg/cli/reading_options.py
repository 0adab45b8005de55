"""Options that several commands share: what to do with files whose headers are wrong, and where files may be."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.data.datasets.cases import ReadingOptions

_SOURCES = ("sform", "qform", "pixdim")


def add_reading_options(parser: Any, *, labels: bool = True, datasets: bool = False) -> None:
    """Add the options to the parser of a command.

    Args:
        parser: The parser.
        labels: Whether the command reads label maps.
        datasets: Whether the command reads datasets.
    """
    parser.add_argument(
        "--orientation-from",
        choices=_SOURCES,
        help="description of the geometry to use where a NIfTI header leaves it open or contradicts itself (default: refuse "
        "files in which left and right are a guess)",
    )
    if labels:
        parser.add_argument(
            "--trust-label-array",
            action="store_true",
            help="place label maps that have as many voxels as their image, but another grid in their header, on the grid "
            "of the image",
        )
    if datasets:
        parser.add_argument(
            "--files-root",
            metavar="FOLDER",
            help="folder that absolute paths and paths with .. in a dataset.json or table may point into (default: the "
            "folder of the dataset)",
        )
        parser.add_argument(
            "--repairs",
            metavar="FILE",
            help="apply the repairs that medseg check --repair wrote (default: none)",
        )


def reading_options(options: argparse.Namespace) -> ReadingOptions:
    """Return what the options of `add_reading_options` decide."""
    from medseg.data.datasets.cases import ReadingOptions

    return ReadingOptions(
        options.orientation_from,
        getattr(options, "trust_label_array", False),
        getattr(options, "files_root", None),
        getattr(options, "repairs", None),
    )
