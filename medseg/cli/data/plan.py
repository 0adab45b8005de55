"""``medseg plan``: measure a dataset and write an experiment that fits it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medseg.cli.early_checks import require_paths
from medseg.cli.output_names import YAML, check_output_name
from medseg.cli.reading_options import add_cluster_option, add_dataset_options, reading_options

PRESETS = ("unet", "resenc", "resenc-m", "resenc-l", "resenc-xl")


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("plan", help="propose an experiment for a dataset", description=__doc__)
    parser.add_argument("dataset", help="dataset folder or table of cases")
    parser.add_argument(
        "-o",
        "--output",
        default="plan.yaml",
        metavar="FILE",
        help="YAML file to write (default: plan.yaml); fingerprint.json and fingerprint.html go into the same folder",
    )
    _add_network_options(parser)
    add_dataset_options(parser, "measure")
    add_cluster_option(parser, "measuring of the cases")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing plan")


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide about the network and its training."""
    parser.add_argument(
        "--preset",
        default="unet",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}: nnU-Net's default, and its residual encoders for GPUs of 8, 8, 24 and 40 GB "
        "(default: unet)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model listed by `medseg models`, with its default options, instead of the planned U-Net",
    )
    parser.add_argument(
        "--dims",
        type=int,
        choices=(2, 3),
        help="spatial axes of the network (default: 3, or 2 for a dataset of single slices; without a GPU also 2 for few thick "
        "slices, and 3 at a low resolution where patches would see too little of a volume, which --dims 3 prevents)",
    )
    parser.add_argument(
        "--lowres",
        action="store_true",
        help="plan a 3D network at a lower resolution, whose patch covers more of a volume",
    )
    parser.add_argument(
        "--memory",
        metavar="8GiB",
        help="memory of the GPU or, without one, of the machine, with a unit (a GPU sold with 8 GB has 8GiB; default: the "
        "preset's, or that of this machine's GPU if less; 8GB without a GPU, whatever this machine has)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="plan for a processor or for a GPU, of whatever machine (default: the GPU of this machine, or a processor if it "
        "has none)",
    )
    parser.add_argument("--steps", type=int, help="training steps (default: 250000 on a GPU)")
    parser.add_argument(
        "--time",
        metavar="20m",
        help="time of the training instead of a number of steps (default: 40m on a processor, for which the network is sized)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="fine-tune this model (a model folder, a run, a checkpoint of nnU-Net v2, or a model of Detectron2, ViT-Adapter, "
        "torchvision or transformers): the plan takes its network, spacing, normalisation and patch",
    )
    parser.add_argument(
        "--keep-old-labels",
        action="store_true",
        help="with --from: also keep the labels of the model that the dataset does not have, without annotations of them",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.models.pretrained.config import is_published_name

    fix = "Give a dataset's folder or a table of cases (TSV or CSV)."
    require_paths([options.dataset], expected="a dataset", fix=fix)
    if options.start is not None and not is_published_name(options.start):
        require_paths([options.start], expected="a model folder, a run or a file of weights")
    from medseg.planning.plan_dataset import (
        FINGERPRINT_NAME,
        PAGE_NAME,
        cascade_lines,
        check_target,
        command_line,
        plan,
    )
    from medseg.planning.plan_options import PlanOptions
    from medseg.runtime.progress import progress_bar
    from medseg.storage.atomic import check_folder

    target = Path(options.output)
    check_output_name(str(target), "--output", YAML)
    check_target(target, overwrite=options.overwrite)
    check_folder(target.parent)
    chosen = PlanOptions(
        options.preset,
        options.dims,
        options.lowres,
        options.model,
        options.memory,
        options.steps,
        options.device,
        options.time,
        options.start,
        options.keep_old_labels,
    )
    with progress_bar(description="measuring") as progress:
        proposed = plan(
            options.dataset,
            chosen,
            layout=options.layout,
            reading=reading_options(options),
            workers=options.workers,
            cluster=options.cluster,
            cache=target.with_name(FINGERPRINT_NAME),
            progress=progress,
        )
    proposed.save(target, overwrite=options.overwrite)
    print(proposed)
    for finding in proposed.fingerprint.findings:
        print(f"  {'!' if finding.severe else '-'} {finding.text}")
    print(f"report:  {target.with_name(PAGE_NAME)}")
    print(f"train:   {command_line(target)}")
    for number, line in enumerate(cascade_lines(proposed, target)):
        print(f"{'' if number else 'cascade:':<8} {line}")
    return 0
