"""The commands that are disturbed, and what they read."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms
from medseg.experiment.experiment import Experiment
from medseg.storage.atomic import write_text

Victim = Literal["main", "worker", "all"]
Launcher = Literal["command", "ranks", "torchrun"]
RUN = "run"


@dataclass(frozen=True)
class Job:
    """A command that is run in an empty folder.

    Attributes:
        name: Name in reports.
        words: Arguments; ``INPUTS`` stands for the folder of the inputs.
        again: Arguments of the next start after an interruption; None if they are the same.
        resumes: Whether ``--resume`` replaces the arguments once the run was opened.
        launcher: How it is started: as one command, as two ranks, or as two ranks by the real torchrun.
        victims: The processes that are killed, in turn.
        given: A folder of the inputs that is copied to the working folder before, and its name there.
        weight: Share of the trials.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] | None = None
    resumes: bool = False
    launcher: Launcher = "command"
    victims: tuple[Victim, ...] = ("main", "all")
    given: tuple[str, str] | None = None
    weight: int = 1

    def arguments(self, inputs: Path) -> list[str]:
        """Return the arguments of an undisturbed start."""
        return _filled(self.words, inputs)

    def next_arguments(self, inputs: Path, work: Path) -> list[str]:
        """Return the arguments of the start after an interruption, as the documentation advises."""
        if self.resumes and self._is_open(work / RUN):
            return ["train", "--resume", RUN]
        return _filled(self.again or self.words, inputs)

    def _is_open(self, run: Path) -> bool:
        """Return whether the run, or its extension, was opened."""
        if "--extend" in self.words:
            return bool(json.loads((run / "run.json").read_text())["extended_at"])
        return (run / "config.yaml").is_file()


def _filled(words: tuple[str, ...], inputs: Path) -> list[str]:
    return [word.replace("INPUTS", str(inputs)) for word in words]


def _train(*words: str) -> tuple[str, ...]:
    return ("train", "INPUTS/toy.yaml", "--run", RUN, *words)


_PREDICT = ("predict", "INPUTS/model", "INPUTS/images", "-o", "out")
_PLAN = ("plan", "INPUTS/data", "-o", "plan/plan.yaml", "--device", "cuda")
_CHECK = (
    "check",
    "INPUTS/data",
    "--json",
    "out/check.json",
    "--html",
    "out/check.html",
    "--repair",
    "out/repairs.yaml",
)
_ANY: tuple[Victim, ...] = ("main", "worker", "all")

JOBS: tuple[Job, ...] = (
    Job("plan", _PLAN, (*_PLAN, "--overwrite"), weight=4),
    Job("plan workers", (*_PLAN, "--workers", "2"), (*_PLAN, "--workers", "2", "--overwrite"), victims=_ANY, weight=3),
    Job("train", _train("train.workers=0"), resumes=True, weight=7),
    Job("train workers", _train("train.workers=2"), resumes=True, victims=_ANY, weight=8),
    Job("train folds", _train("train.workers=0", "train.steps=4", "--all-folds"), resumes=True, weight=3),
    Job("train extend", ("train", "--resume", RUN, "--extend", "4"), resumes=True, given=(RUN, RUN), weight=2),
    Job("train ranks", _train("train.workers=0"), resumes=True, launcher="ranks", victims=("worker", "main", "worker", "all"), weight=5),
    Job("train torchrun", _train("train.workers=1"), resumes=True, launcher="torchrun", victims=("worker", "main", "all"), weight=1),
    Job("predict", (*_PREDICT, "--probabilities"), (*_PREDICT, "--probabilities", "--skip-existing"), weight=5),
    Job("predict over others", _PREDICT, given=("others", "out"), weight=3),
    Job("predict devices", (*_PREDICT, "--device", "cpu,cpu"), (*_PREDICT, "--device", "cpu,cpu", "--skip-existing"), victims=_ANY, weight=3),
    Job("evaluate", ("evaluate", "INPUTS/predictions", "INPUTS/data/labelsTr", "-o", "out"), weight=4),
    Job("check", _CHECK, (*_CHECK, "--overwrite"), weight=4),
)  # fmt: skip

_EXPERIMENT = {
    "name": "toy",
    "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1, "dropout": 0.2},
    "patch": {"size": [16, 16, 16]},
    "train": {
        "steps": 12,
        "save_every": 2,
        "report_every": 1,
        "validate_every": 3,
        "validation_batches": 1,
        "ema_decay": 0.9,
    },
}


def write_inputs(folder: Path) -> None:
    """Write a dataset, an experiment, images, a model and predictions into a folder.

    Args:
        folder: Empty folder.
    """
    write_phantoms(folder / "data", cases=5, shape=(24, 20, 18), spacing=(13, 14, 14))
    write_phantoms(folder / "more", cases=4, seed=1, shape=(26, 22, 16), spacing=(12, 13, 15))
    (folder / "more" / "imagesTr").rename(folder / "images")
    experiment = Experiment.parse(
        {**_EXPERIMENT, "data": {"path": str(folder / "data"), "folds": 2}}, source="toy"
    )
    write_text(folder / "toy.yaml", experiment.to_yaml())
    _done("train", str(folder / "toy.yaml"), "--run", str(folder / RUN))
    shutil.copytree(folder / RUN / "model", folder / "model")
    shutil.rmtree(folder / ".prepared")
    others = ("-o", str(folder / "others"), "--probabilities", "overlap=0.25")
    _done("predict", str(folder / "model"), str(folder / "images"), *others)
    _done(
        "predict", str(folder / "model"), str(folder / "data" / "imagesTr"), "-o", str(folder / "predictions")
    )


def _done(*words: str) -> None:
    code = main(words)
    if code:
        raise AssertionError(f"medseg {' '.join(words)}: exit code {code}")
