"""A cascade for volumes of which a patch at the full resolution sees little (nnU-Net, Isensee et al. 2021).

A network at a low resolution looks first, and that at the full resolution sees its label map beside the image.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from medseg.planning.commented_yaml import Explained, ExplainedValues

FIRST, SECOND = "_lowres", "_cascade"


def stage_file(path: Path, mark: str) -> Path:
    """Where a stage is written that belongs to the plan at `path`: ``plan_lowres.yaml`` beside ``plan.yaml``."""
    return path.with_name(f"{path.stem}{mark}{path.suffix}")


def run_of(name: str) -> str:
    """The run folder of an experiment of this name, where the commands put it."""
    return f"runs/{name}"


def second_stage(full: ExplainedValues, name: str, first: str) -> ExplainedValues:
    """The full resolution's experiment, called `name`, behind the run of an earlier stage called `first`."""
    run = Explained(run_of(first), "its label maps of all cases, each by a fold that did not train on it")
    return {**full, "name": Explained(name), "cascade": {"first_stage": run}}


def commands(path: Path, first: str, second: str) -> list[str]:
    """The commands of both stages, in order; `first` and `second` are the names of their experiments."""
    low, full = (shlex.quote(str(stage_file(path, mark))) for mark in (FIRST, SECOND))
    return [
        f"medseg train {low} --run {run_of(first)} --all-folds",
        f"medseg train {full} --run {run_of(second)}",
        f"medseg predict {run_of(second)}/model IMAGE.nii.gz -o segmented",
    ]


def explained(lines: Sequence[str]) -> list[str]:
    """The commands with what each does behind it, for a heading."""
    why = (
        "1. the folds label every case",
        "2. learns behind these label maps; or --all-folds",
        "runs both stages",
    )
    width = max(map(len, lines))
    return [f"  {line:<{width}}  # {reason}" for line, reason in zip(lines, why, strict=True)]
