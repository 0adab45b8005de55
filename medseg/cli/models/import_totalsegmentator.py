"""``medseg import totalsegmentator``: convert the networks of a task of TotalSegmentator to one model folder."""

from __future__ import annotations

import argparse
from typing import Any

from medseg.cli.early_checks import require_paths


def add_parser(sources: Any) -> None:
    """Add the command and its options to the parser."""
    text = "the networks of a task of TotalSegmentator, as one model"
    parser = sources.add_parser("totalsegmentator", help=text, description=text)
    parser.add_argument(
        "model",
        metavar="FOLDER",
        help="folder with DatasetNNN_NAME, such as ~/.totalsegmentator/nnunet/results",
    )
    parser.add_argument("-o", "--output", required=True, metavar="MODEL_FOLDER", help="model folder to write")
    parser.add_argument(
        "--task", help="task, such as total, total_fast or total_mr (default: the only one in FOLDER)"
    )
    parser.add_argument(
        "--resampling-order",
        type=int,
        choices=(1, 3),
        default=1,
        help="spline order with which images are resampled; 3 as before TotalSegmentator 2.16 (default: 1)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.model])
    from medseg.interop.totalsegmentator.import_task import import_totalsegmentator

    saved = import_totalsegmentator(
        options.model, options.output, task=options.task, resampling_order=options.resampling_order
    )
    origin = saved.trained_on
    print(f"{options.output}: task {origin['task']}, {saved.members} network(s) of {origin['datasets']}")
    print(f"Licence of the weights: {saved.card.licence}")
    return 0
