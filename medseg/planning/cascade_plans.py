"""Plans of a cascade, for volumes that are much larger than a full-resolution patch (nnU-Net, Isensee et al. 2021).

The first network predicts at a low resolution; the second receives its label map in addition to the image at full
resolution.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from medseg.planning.commented_yaml import Explained, ExplainedValues

FIRST, SECOND = "_lowres", "_cascade"


def stage_file(path: Path, mark: str) -> Path:
    """Return the file of a stage of the plan at `path`, such as ``plan_lowres.yaml`` next to ``plan.yaml``.

    Args:
        path: The file of the plan.
        mark: `FIRST` or `SECOND`.

    Returns:
        A file in the same folder.
    """
    return path.with_name(f"{path.stem}{mark}{path.suffix}")


def run_of(name: str) -> str:
    """Return the run folder that the commands use for an experiment.

    Args:
        name: Name of the experiment.

    Returns:
        A path relative to the working folder.
    """
    return f"runs/{name}"


def second_stage(full: ExplainedValues, name: str, first: str) -> ExplainedValues:
    """Return the full-resolution experiment as the second stage of a cascade.

    Args:
        full: The full-resolution experiment.
        name: New name of the experiment.
        first: Name of the experiment of the first stage.

    Returns:
        The values of the experiment, with the run of the first stage under ``cascade``.
    """
    run = Explained(
        run_of(first), "its predictions of all cases, each by a fold that was not trained on the case"
    )
    return {**full, "name": Explained(name), "cascade": {"first_stage": run}}


def commands(path: Path, first: str, second: str) -> list[str]:
    """Return the commands that train and apply both stages, in order.

    Args:
        path: The file of the plan.
        first: Name of the experiment of the first stage.
        second: Name of the experiment of the second stage.

    Returns:
        One line per command: train the first stage, train the second stage, predict.
    """
    low, full = (shlex.quote(str(stage_file(path, mark))) for mark in (FIRST, SECOND))
    return [
        f"medseg train {low} --run {run_of(first)} --all-folds",
        f"medseg train {full} --run {run_of(second)}",
        f"medseg predict {run_of(second)}/model IMAGE.nii.gz -o segmented",
    ]


def explained(lines: Sequence[str]) -> list[str]:
    """Return the commands with comments, for the heading of a plan.

    Args:
        lines: The commands.

    Returns:
        Indented lines, with the comments aligned.
    """
    why = (
        "1. predicts every case by cross-validation",
        "2. trains with these label maps as input; or --all-folds",
        "runs both stages",
    )
    width = max(map(len, lines))
    return [f"  {line:<{width}}  # {reason}" for line, reason in zip(lines, why, strict=True)]
