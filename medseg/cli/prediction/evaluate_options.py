"""Options of ``medseg evaluate`` about the metrics of label maps and of instances."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from medseg.errors import ConfigError

_NAMES = ("tolerance_mm", "metrics", "both_empty", "boundary_mm", "lesion_dilation", "lesion_min_mm3")
_METRIC_OF_OPTION = {
    "boundary_mm": "boundary_iou",
    "lesion_dilation": "lesion_wise",
    "lesion_min_mm3": "lesion_wise",
}
_INSTANCE_NAMES = ("detection_iou", "matching_iou", "size_bounds_mm3")


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser; those that are not given have the value None."""
    group = parser.add_argument_group("metrics of label maps (default: those of the run's evaluate settings)")
    group.add_argument(
        "--metrics",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        metavar="NAME[,NAME]",
        help="also compute surface_dice_area, cldice, boundary_iou or lesion_wise (lesion-wise Dice and HD95 of BraTS), or all",
    )
    group.add_argument(
        "--tolerance-mm", type=float, metavar="MM", help="tolerance of the surface Dice in mm (default: 1)"
    )
    group.add_argument(
        "--both-empty",
        choices=("leave_out", "perfect"),
        help="cases without the label in prediction and reference: leave them out of the means, or count overlaps as 1 and "
        "distances as 0 (default: leave_out)",
    )
    group.add_argument(
        "--boundary-mm",
        type=float,
        metavar="MM",
        help="width of the boundary of boundary_iou in mm (default: 2 %% of the image's diagonal)",
    )
    group.add_argument(
        "--lesion-dilation",
        type=int,
        metavar="VOXELS",
        help="lesion_wise: voxels by which reference lesions are dilated; those that then touch are one (default: 3)",
    )
    group.add_argument(
        "--lesion-min-mm3",
        type=float,
        metavar="MM3",
        help="lesion_wise: volume up to which a reference lesion is not counted (default: 50)",
    )


def given_metric_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by the names of `MetricOptions`."""
    return {name: getattr(options, name) for name in _NAMES if getattr(options, name) is not None}


def require_metrics_of_options(options: argparse.Namespace, metrics: Collection[str]) -> None:
    """Raise `ConfigError` if an option was given whose metric is not computed.

    Args:
        options: The parsed options.
        metrics: The metrics on request that are computed, those of a run included.

    Raises:
        ConfigError: An option has no effect.
    """
    for name, metric in _METRIC_OF_OPTION.items():
        if getattr(options, name) is not None and metric not in metrics:
            wanted = ",".join((*metrics, metric))
            raise ConfigError(
                f"--{name.replace('_', '-')}: found it without the metric {metric}, expected both. "
                f"Add --metrics {wanted}, or remove it."
            )


def add_instance_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about instances to a parser; numbers that are not given have the value None."""
    group = parser.add_argument_group("instances")
    group.add_argument(
        "--instances",
        action="store_true",
        help="compare instance maps: AP, PQ, F1, AJI, detection; a table next to a map may give classes and scores",
    )
    group.add_argument(
        "--components-of",
        choices=("predictions", "both"),
        help="treat these files as label maps and each of their connected components as an instance",
    )
    group.add_argument(
        "--detection-iou",
        type=float,
        metavar="IOU",
        help="IoU from which a reference counts as detected (default: 0, any shared voxel)",
    )
    group.add_argument(
        "--matching-iou",
        type=float,
        metavar="IOU",
        help="IoU above which a prediction and a reference are a pair, for F1, PQ and accuracy (default: 0.5)",
    )
    group.add_argument(
        "--size-bounds-mm3",
        type=lambda text: tuple(float(bound) for bound in text.split(",")),
        metavar="MM3[,MM3]",
        help="also count by size: volumes between the classes in mm³ (pixels of natural images), such as 10,500",
    )


def given_instance_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by the names of `InstanceOptions`."""
    return {name: getattr(options, name) for name in _INSTANCE_NAMES if getattr(options, name) is not None}
