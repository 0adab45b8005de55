"""``medseg plan``: measure a dataset and write an experiment that fits it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

PRESETS = ("unet", "resenc", "resenc-m", "resenc-l", "resenc-xl")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("plan", help="propose an experiment for a dataset", description=__doc__)
    parser.add_argument("dataset", help="dataset folder or table")
    parser.add_argument(
        "-o",
        "--output",
        default="plan.yaml",
        metavar="FILE",
        help="YAML to write; plan.yaml unless told. fingerprint.json and fingerprint.html go beside it",
    )
    parser.add_argument(
        "--preset",
        default="unet",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}: nnU-Net's default, and its residual encoders for GPUs of 8, 8, 24 and 40 GB",
    )
    parser.add_argument("--model", metavar="NAME", help="another model of `medseg models`, with its defaults")
    parser.add_argument("--dims", type=int, choices=(2, 3), help="3 unless told, or 2 for single slices")
    parser.add_argument("--lowres", action="store_true", help="a coarser 3-D network that sees more at once")
    parser.add_argument(
        "--memory",
        metavar="8GiB",
        help="memory of the GPU, with a unit (a GPU sold with 8 GB has 8GiB; default: the preset's, or this machine's "
        "if less)",
    )
    parser.add_argument(
        "--steps", type=int, help="of the training; unless told 250000 for a GPU, else what 40 minutes hold"
    )
    parser.add_argument("--layout", default="auto", help="auto, msd, nnunet, bids, images or table")
    parser.add_argument("--workers", type=int, help="processes that measure, each with one case in memory")
    parser.add_argument("--overwrite", action="store_true", help="replace a plan that is there")


def run(options: argparse.Namespace) -> int:
    from medseg.runtime.progress import progress_bar
    from medseg.storage.atomic import make_folder
    from medseg.planning.plan_dataset import (
        FINGERPRINT_NAME,
        PAGE_NAME,
        cascade_lines,
        check_target,
        command_line,
        plan,
    )

    target = Path(options.output)
    check_target(target, overwrite=options.overwrite)
    make_folder(target.parent)
    with progress_bar(description="measuring") as progress:
        made = plan(
            options.dataset,
            preset=options.preset,
            dims=options.dims,
            lowres=options.lowres,
            model=options.model,
            memory=options.memory,
            steps=options.steps,
            layout=options.layout,
            workers=options.workers,
            cache=target.with_name(FINGERPRINT_NAME),
            progress=progress,
        )
    made.save(target, overwrite=options.overwrite)
    print(made)
    for finding in made.fingerprint.findings:
        print(f"  {'!' if finding.severe else '-'} {finding.text}")
    print(f"look at: {target.with_name(PAGE_NAME)}")
    print(f"train:   {command_line(target)}")
    for number, line in enumerate(cascade_lines(made, target)):
        print(f"{'' if number else 'cascade:':<8} {line}")
    return 0
