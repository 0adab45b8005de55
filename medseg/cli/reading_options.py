"""Options that several commands share: how datasets are read, files that can be read in several ways, and clusters."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from medseg.data.datasets.layout_registry import BUILT_IN_LAYOUTS

if TYPE_CHECKING:
    from medseg.data.datasets.cases import ReadingOptions

_SOURCES = ("sform", "qform", "pixdim")


def add_reading_options(
    parser: Any, *, images: bool = True, labels: bool = True, datasets: bool = False
) -> None:
    """Add the options to the parser of a command.

    Args:
        parser: The parser.
        images: Whether the command reads images.
        labels: Whether the command reads label maps.
        datasets: Whether the command reads datasets.
    """
    parser.add_argument(
        "--orientation-from",
        choices=_SOURCES,
        help="description of the geometry to use where a NIfTI header leaves it open or contradicts itself (default: refuse "
        "files in which left and right are a guess)",
    )
    if images:
        parser.add_argument(
            "--series",
            metavar="UID or NUMBER",
            help="DICOM series to read in folders with several; medseg inspect FOLDER lists them (default: the only one that is a volume)",
        )
        parser.add_argument(
            "--uneven",
            choices=("refuse", "resample"),
            help="what to do with DICOM series with uneven gaps between slices: refuse them, or interpolate slices linearly between "
            "their true positions (default: refuse)",
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
            "--absent-channels",
            choices=("refuse", "zeros"),
            help="what to do with cases without a file for some of their channels: refuse them, or use zeros after normalisation "
            "(default: refuse)",
        )
        add_files_root(parser, "a dataset.json or table")
        parser.add_argument(
            "--repairs",
            metavar="FILE",
            help="apply the repairs that medseg check --repair wrote (default: none)",
        )


def add_files_root(parser: Any, where: str) -> None:
    """Add the option that allows files outside the folder of a list of files.

    Args:
        parser: The parser.
        where: What lists the files, for the help text.
    """
    parser.add_argument(
        "--files-root",
        metavar="FOLDER",
        help=f"folder that absolute paths and paths with .. in {where} may point into (default: its own folder)",
    )


def add_cluster_option(parser: Any, what: str) -> None:
    """Add the option that spreads work over a Dask cluster.

    Args:
        parser: The parser.
        what: What is spread, for the help text.
    """
    parser.add_argument(
        "--cluster",
        metavar="WHERE",
        help=f"spread the {what} over the workers of a Dask cluster: local:N for N processes, the address of a scheduler, or a "
        "YAML file that describes jobs of SLURM (needs medseg[cluster])",
    )


def add_dataset_options(parser: Any, verb: str) -> None:
    """Add the options of a command that reads all cases of a dataset, the ones of `add_reading_options` included.

    Args:
        parser: The parser.
        verb: What worker processes do with the cases, for the help text.
    """
    parser.add_argument(
        "--layout",
        default="auto",
        metavar="NAME",
        help=f"auto, {', '.join(BUILT_IN_LAYOUTS)}, or the layout of an installed package (default: auto)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help=f"processes that {verb} cases, each with one case in memory (default: one per core for large datasets, else 0)",
    )
    add_reading_options(parser, datasets=True)


def reading_options(options: argparse.Namespace) -> ReadingOptions:
    """Return what the options of `add_reading_options` decide."""
    from medseg.data.datasets.cases import ReadingOptions

    return ReadingOptions(
        options.orientation_from,
        getattr(options, "trust_label_array", False),
        getattr(options, "files_root", None),
        getattr(options, "series", None),
        getattr(options, "uneven", None) or "refuse",
        getattr(options, "repairs", None),
        absent_channels=getattr(options, "absent_channels", None) or "refuse",
    )
