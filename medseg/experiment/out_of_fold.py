"""Out-of-fold predictions: each case by the model that was not trained on it.

``RUN/predictions/made_by.json`` notes which model each is of; a prediction of an earlier model is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.data.cases import Case
from medseg.data.splits import read_splits
from medseg.errors import ConfigError
from medseg.experiment.folds import fold_folder
from medseg.experiment.runs import find_dataset, load_run
from medseg.inference.instance_files import predict_instance_files
from medseg.inference.many import OnWindow, Outcome, predict_files
from medseg.inference.predictor import Predictor, load
from medseg.io.atomic import make_folder, write_text
from medseg.io.instances import instance_file
from medseg.io.manifest import NAME

NOTES = "made_by.json"


@dataclass(frozen=True)
class HeldOut:
    """The cases that one fold held out.

    Attributes:
        fold: its number. model: its model folder. mark: tells that model from any other.
        cases: sorted by id.
    """

    fold: int
    model: Path
    mark: str
    cases: tuple[Case, ...]


def held_out_by_fold(run: Path) -> list[HeldOut]:
    """The held-out cases of every fold.

    Raises:
        ConfigError: folds are not finished, so that there are no models to predict them.
    """
    experiment = load_run(run)
    dataset = find_dataset(experiment, run)
    splits = read_splits(run / "splits.json", dataset.labelled)
    models = [fold_folder(run, fold) / "model" for fold in range(len(splits))]
    missing = [str(fold) for fold, model in enumerate(models) if not (model / NAME).is_file()]
    if missing:
        raise ConfigError(
            f"{run}: folds not finished: found {', '.join(missing)} of {len(splits)}, expected none. Go on with: medseg train "
            f"--resume {run}."
        )
    return [
        HeldOut(fold, model, _mark(model), dataset.subset(split.validation).cases)
        for fold, (model, split) in enumerate(zip(models, splits, strict=True))
    ]


def still_to_predict(run: Path, *, instances: bool = False) -> list[HeldOut]:
    """Of every fold those held-out cases of which its present model has made no prediction yet.

    Args:
        run: of a cross-validation.
        instances: instance maps are wanted, too.
    """
    notes, folder = _notes(run), run / "predictions"

    def is_there(held_out: HeldOut, case: Case) -> bool:
        target, note = folder / f"{case.id}.nii.gz", notes.get(case.id, {})
        files = [target, instance_file(target)] if instances else [target]
        made = note.get("model") == held_out.mark and note.get("instances", False) >= instances
        return made and all(file.is_file() for file in files)

    return [
        replace(one, cases=tuple(case for case in one.cases if not is_there(one, case)))
        for one in held_out_by_fold(run)
    ]


def predict_out_of_fold(
    run: Path,
    todo: Sequence[HeldOut],
    *,
    instances: bool = False,
    device: str | None = None,
    max_memory: int | str | None = None,
    on_window: OnWindow | None = None,
) -> Iterator[Outcome]:
    """Predict held-out cases with the models of their folds, into ``RUN/predictions``.

    Args:
        run: of a cross-validation.
        todo: as `still_to_predict` tells.
        instances: with instance maps.
        device, max_memory: as for `medseg.load`.
        on_window: called with (windows done, windows in all) of each image.

    Yields:
        An outcome per case, once its file is written and noted.
    """
    folder, notes = run / "predictions", _notes(run)
    make_folder(folder)
    for one in todo:
        if not one.cases:
            continue
        predictor = load(one.model, device=device, max_memory=max_memory)
        for outcome in _predicted(predictor, one, folder, instances, on_window):
            if outcome.error is None:
                notes[outcome.case.id] = {"model": one.mark, "instances": instances}
                write_text(folder / NOTES, json.dumps(notes, indent=1, sort_keys=True) + "\n")
            yield outcome


def _predicted(
    predictor: Predictor, one: HeldOut, folder: Path, instances: bool, on_window: OnWindow | None
) -> Iterator[Outcome]:
    pairs = [(case, folder / f"{case.id}.nii.gz") for case in one.cases]
    if instances:
        return predict_instance_files(predictor, pairs, on_slice=on_window)
    return predict_files(predictor, pairs, on_window=on_window)


def _mark(model: Path) -> str:
    """A hash over the hashes of all files of a model folder."""
    return hashlib.sha256((model / NAME).read_bytes()).hexdigest()


def _notes(run: Path) -> dict[str, dict[str, Any]]:
    """Case id → which model made its prediction; what cannot be read counts as not made."""
    try:
        notes = json.loads((run / "predictions" / NOTES).read_text(encoding="utf-8"))
        return {str(case): dict(note) for case, note in notes.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
