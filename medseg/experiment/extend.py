"""More steps, or more time, for a run that is finished."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.train.checkpoint import load_checkpoint
from medseg.train.settings import seconds_of


def extended(experiment: ExperimentConfig, run: Path, more: str) -> ExperimentConfig:
    """The experiment of a finished run with a later end; writes nothing.

    Args:
        experiment: of the run, whose ``train.extended`` then tells the step at which it went on.
        more: steps such as ``2000``, or time such as ``30m``, on top of what was done.

    Raises:
        ConfigError: the run is not finished, or `more` is neither steps nor time.
    """
    found = load_checkpoint(run / "last")
    state = found[1] if found else {}
    done = bool(state) and (state.get("finished") or state["step"] == experiment.train.steps)
    if not done or state.get("extended", 0) != len(experiment.train.extended):
        raise ConfigError(
            f"{run}: found a training that is not finished, expected a finished one to extend. Finish it with: "
            f"medseg train --resume {run}."
        )
    step = int(state["step"])
    end = _end(step, float(state["seconds"]), more)
    train = experiment.train.replace(**end, extended=[*experiment.train.extended, step])
    return experiment.replace(train=train.to_plain())


def _end(step: int, seconds: float, more: str) -> dict[str, Any]:
    """Steps or budget, the other one None."""
    if re.fullmatch(r"[1-9][0-9]*", more):
        return {"steps": step + int(more), "max_time": None}
    try:
        return {"steps": None, "max_time": f"{seconds + seconds_of(more):.0f}s"}
    except ValueError:
        raise ConfigError(
            f"--extend: found {more!r}, expected a number of steps such as 2000 or a time such as 30m. Correct it."
        ) from None
