"""Out-of-fold predictions: each case by the model that was not trained on it.

A prediction of an earlier model is made again; see `medseg.inference.provenance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.data.datasets.splits import read_splits
from medseg.errors import ConfigError
from medseg.experiment.fold_folders import fold_folder
from medseg.experiment.run_folder import find_dataset, load_run
from medseg.inference.batch import Outcome, predict_files
from medseg.inference.instance_batch import predict_instance_files
from medseg.inference.predictor import load
from medseg.inference.provenance import ModelId, Provenance
from medseg.io.instance_files import instance_map_path
from medseg.runtime.progress import Progress
from medseg.storage.atomic import make_folder
from medseg.storage.manifest import NAME


@dataclass(frozen=True)
class HeldOut:
    """The cases that one fold held out.

    Attributes:
        fold: its number. model: its model folder. maker: tells that model from any other.
        cases: sorted by id.
    """

    fold: int
    model: Path
    model_id: ModelId
    cases: tuple[Case, ...]


def held_out_by_fold(run: Path) -> list[HeldOut]:
    """The held-out cases of every fold.

    Raises:
        ConfigError: folds are not finished, so that there are no models to predict them.
    """
    experiment = load_run(run)
    dataset = find_dataset(experiment, run)
    splits = read_splits(run / "splits.json", dataset.labelled_cases)
    models = [fold_folder(run, fold) / "model" for fold in range(len(splits))]
    missing = [str(fold) for fold, model in enumerate(models) if not (model / NAME).is_file()]
    if missing:
        raise ConfigError(
            f"{run}: folds not finished: found {', '.join(missing)} of {len(splits)}, expected none. Go on with: medseg train "
            f"--resume {run}."
        )
    return [
        HeldOut(fold, model, ModelId.from_folders([model]), dataset.subset(split.validation).cases)
        for fold, (model, split) in enumerate(zip(models, splits, strict=True))
    ]


def pending_predictions(run: Path, *, instances: bool = False) -> list[HeldOut]:
    """Of every fold those held-out cases of which its present model has made no prediction yet.

    Args:
        run: of a cross-validation.
        instances: instance maps are wanted, too.
    """
    folder = run / "predictions"
    provenance = Provenance(folder)

    def is_there(held_out: HeldOut, case: Case) -> bool:
        target = folder / f"{case.id}.nii.gz"
        files = [target, instance_map_path(target)] if instances else [target]
        made = provenance.is_by(case.id, held_out.model_id, instances=instances)
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
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Predict held-out cases with the models of their folds, into ``RUN/predictions``.

    Args:
        run: of a cross-validation.
        todo: as `still_to_predict` tells.
        instances: with instance maps.
        device, max_memory: as for `medseg.load`.
        progress: called with (done, total, "window") of each image.

    Yields:
        An outcome per case, once its file is written and noted.
    """
    folder = run / "predictions"
    make_folder(folder)
    provenance = Provenance(folder)
    for one in todo:
        if not one.cases:
            continue
        predictor = load(one.model, device=device, max_memory=max_memory)
        recording = partial(provenance.recording, model_id=one.model_id, instances=instances)
        pairs = [(case, folder / f"{case.id}.nii.gz") for case in one.cases]
        if instances:
            yield from predict_instance_files(predictor, pairs, progress=progress, recording=recording)
        else:
            yield from predict_files(predictor, pairs, progress=progress, recording=recording)
