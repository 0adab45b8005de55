"""``medseg import nnunet``: convert a trained model of nnU-Net v2 to a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medseg.cli.early_checks import require_paths
from medseg.cli.models.licence_option import add_licence_option


def add_parser(sources: Any) -> None:
    """Add the command and its options to the parser."""
    text = "a trained model of nnU-Net v2"
    parser = sources.add_parser("nnunet", help=text, description=text)
    parser.add_argument(
        "model", metavar="FOLDER", help="TRAINER__PLANS__CONFIGURATION of nnUNet_results, or an exported zip"
    )
    parser.add_argument("-o", "--output", required=True, metavar="MODEL_FOLDER", help="model folder to write")
    parser.add_argument(
        "--configuration", help="configuration, such as 3d_fullres (default: the one in the name of FOLDER)"
    )
    parser.add_argument(
        "--folds", metavar="0,1,...", help="folds, such as 0,1,2 or all (default: all folds in FOLDER)"
    )
    parser.add_argument(
        "--checkpoint", choices=("final", "best"), default="final", help="which checkpoint (default: final)"
    )
    parser.add_argument(
        "--orientation",
        metavar="CODES",
        help="orientation of the training files, such as LAS, if known; files are reoriented to it before prediction",
    )
    parser.add_argument(
        "--first-stage",
        metavar="FOLDER",
        help="trained 3d_lowres folder of a 3d_cascade_fullres (default: the one next to FOLDER)",
    )

    add_licence_option(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.model, options.first_stage])
    from medseg.interop.nnunet.model import import_nnunet

    saved = import_nnunet(
        Path(options.model),
        Path(options.output),
        configuration=options.configuration,
        folds=None if options.folds is None else [fold.strip() for fold in options.folds.split(",")],
        checkpoint=options.checkpoint,
        orientation=options.orientation,
        first_stage=options.first_stage,
        licence=options.licence,
    )
    origin = saved.trained_on
    print(
        f"{options.output}: {saved.model['name']} of {origin['trainer']}, {origin['configuration']}, "
        f"folds {origin['folds']}"
    )
    if "postprocessing" in origin:
        print(f"Post-processing: {origin['postprocessing']}")
    if saved.predict.keep_largest_foreground or saved.predict.keep_largest:
        print("To predict without it: keep_largest_foreground=false keep_largest=[]")
    if saved.preprocessing.orientation is None:
        print(
            "Orientation: as in nnU-Net, files are not reoriented, so predict only files stored like the training files. "
            "If you know their orientation, import with --orientation; files of any orientation can then be predicted."
        )
    return 0
