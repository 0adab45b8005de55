"""More steps, or more time, for a finished run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.experiment.run_folder import RunFolder, RunRecord
from medseg.train.checkpoint import load_checkpoint
from medseg.train.settings import seconds_of


@dataclass(frozen=True)
class Extension:
    """A later end for a finished run.

    Attributes:
        experiment: The experiment with the new end.
        record: The record of the run with the step at which it continues.
    """

    experiment: ExperimentConfig
    record: RunRecord

    def write(self, run: RunFolder) -> None:
        """Write both to the run folder.

        The config comes first: a run with a new config and an old record counts as finished and can be extended again.
        """
        run.write_config(self.experiment)
        run.write_record(self.record)


def plan_extension(experiment: ExperimentConfig, run: RunFolder, more: str) -> Extension:
    """Return a later end for a finished run; write nothing.

    Args:
        experiment: Experiment of the run.
        run: Run folder.
        more: Steps such as ``2000``, or time such as ``30m``, in addition to what was done.

    Returns:
        The experiment with its later end, and what to record of the extension.

    Raises:
        ConfigError: The run is not finished, is a fold of a cross-validation, or `more` is neither steps nor time.
    """
    if run.fold_of is not None:
        raise ConfigError(
            f"{run}: found a fold of a cross-validation, expected a single run to extend, because all folds are "
            "trained equally long. Train longer in a new folder."
        )
    record = run.read_record()
    found = load_checkpoint(run.checkpoints)
    state = found[1] if found else {}
    done = bool(state) and (state["finished"] or state["step"] == experiment.train.steps)
    if not done or state["extensions"] != len(record.extended_at):
        raise ConfigError(
            f"{run}: found a training that is not finished, expected a finished one to extend. Finish it with: "
            f"medseg train --resume {run}."
        )
    step = int(state["step"])
    train = experiment.train.replace(**_new_length(step, float(state["seconds"]), more))
    return Extension(
        experiment.replace(train=train.to_plain()), record.replace(extended_at=(*record.extended_at, step))
    )


def _new_length(step: int, seconds: float, more: str) -> dict[str, Any]:
    """Return the settings ``steps`` and ``max_time`` of the longer training; one of them is None."""
    if re.fullmatch(r"[1-9][0-9]*", more):
        return {"steps": step + int(more), "max_time": None}
    try:
        return {"steps": None, "max_time": f"{seconds + seconds_of(more):.0f}s"}
    except ValueError:
        raise ConfigError(
            f"--extend: found {more!r}, expected a number of steps such as 2000 or a time such as 30m. Correct it."
        ) from None
